//! The files of a manifests directory, read with a bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Largest file that is read. The 1 MiB of a Kubernetes object times a well filled List.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 20;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// It is gone: deleted between the listing and now.
    #[error("the file is gone")]
    Gone,
    /// The operating system's reason.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// A device, a FIFO or a socket: reading could block for ever.
    #[error("is not a regular file")]
    NotRegular,
    /// Over the bound.
    #[error("is larger than {} MiB", MAX_FILE_BYTES >> 20)]
    TooLarge,
    /// Not text.
    #[error("is not UTF-8: first bad byte at offset {0}")]
    NotUtf8(usize),
}

/// How a file is to be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One or more YAML documents.
    Yaml,
    /// One or more JSON values.
    Json,
}

impl Format {
    /// By the ending, as kubectl chooses: `.yaml`, `.yml`, `.json`. Hidden files and the
    /// temporary files of editors have none, also the `..data` directories that Kubernetes puts
    /// into ConfigMap mounts.
    pub(super) fn of(name: &str) -> Option<Self> {
        if name.starts_with(['.', '#', '~']) {
            return None;
        }
        match name.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// The names of the manifests in `dir`, sorted. A partial listing is an error: whoever takes it
/// for the whole would delete what was not listed.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(String, Format)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A name that is not UTF-8 could not be shown in a message nor found by one.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(format) = Format::of(&name) else { continue };
        // Follows symlinks: that is how ConfigMap mounts are built. A link that leads nowhere is
        // kept, so that reading it says so.
        if !fs::metadata(entry.path()).is_ok_and(|target| target.is_dir()) {
            names.push((name, format));
        }
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

/// The text of a file of at most [`MAX_FILE_BYTES`].
pub(super) fn read(path: &Path) -> Result<String, ReadError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(ReadError::Io)?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read, so the size it claims does not count.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ReadError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| ReadError::NotUtf8(error.utf8_error().valid_up_to()))
}

fn open(path: &Path) -> Result<File, ReadError> {
    // Non-blocking: opening a FIFO would otherwise wait for a writer.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| {
        let gone = error.kind() == io::ErrorKind::NotFound;
        // A dangling symlink is not a deleted file.
        if gone && fs::symlink_metadata(path).is_err() {
            ReadError::Gone
        } else {
            ReadError::Io(error)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        list(dir).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn only_manifests_are_listed_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "b.yml",
            "a.yaml",
            "c.json",
            ".hidden.yaml",
            ".#a.yaml",
            "#a.yaml#",
            "a.yaml~",
            "a.yaml.swp",
            "~b.yaml",
            "README.md",
            "yaml",
            "4913",
            "a.yaml.tmp",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        assert_eq!(names(dir.path()), ["a.yaml", "b.yml", "c.json"]);
    }

    #[test]
    fn symlinks_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..v1")).unwrap();
        fs::write(dir.path().join("..v1/a.yaml"), "a: 1").unwrap();
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        assert_eq!(names(dir.path()), ["a.yaml"]);
        assert_eq!(read(&dir.path().join("a.yaml")).unwrap(), "a: 1");
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        symlink("nowhere", path("dangling.yaml")).unwrap();
        File::create(path("large.yaml")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        fs::write(path("latin1.yaml"), b"name: f\xfcr").unwrap();
        nix::unistd::mkfifo(&path("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(names(dir.path()).len(), 4);
        assert!(matches!(read(&path("gone.yaml")), Err(ReadError::Gone)));
        assert!(matches!(read(&path("dangling.yaml")), Err(ReadError::Io(_))));
        assert!(matches!(read(&path("large.yaml")), Err(ReadError::TooLarge)));
        assert!(matches!(read(&path("latin1.yaml")), Err(ReadError::NotUtf8(7))));
        assert!(matches!(read(&path("fifo.yaml")), Err(ReadError::NotRegular)));
    }
}
