//! Files that are replaced as a whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;

/// A reader sees the old content or the new one, also after a power cut.
pub(crate) fn write_atomically(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    // Endpoints of everybody's Services are nobody else's business.
    let open = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new);
    let mut file = BufWriter::new(open.with_context(|| new.display().to_string())?);
    content(&mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    fs::rename(&new, path)?;
    let dir = path.parent().context("a path without a directory")?;
    File::open(dir)?.sync_all()?;
    Ok(())
}
