//! The last complete input in a file, for a start while no API server answers. The pins go on
//! forwarding without it; it has what they don't: health checks, and everything after a reboot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::packed::Packed;
use crate::source::write::write_atomically;
use crate::source::{Kind, Object};

const FILE: &str = "inputs.json";
/// Of the file's content. Another one is not read.
const FORMAT: u32 = 1;
/// Least time between two writes.
const EVERY: Duration = Duration::from_secs(2);
/// Writing may take this part of the time.
const SHARE: u32 = 50;

/// The content of the file.
#[derive(Debug, Deserialize)]
struct Stored {
    format: u32,
    /// The inputs of another node are not this one's.
    node: String,
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    nodes: Vec<Arc<Node>>,
}

/// What goes into the file. The objects are shared with who knows them.
#[derive(Debug)]
struct Content {
    node: String,
    objects: BTreeMap<Kind, Vec<Packed>>,
}

/// What an earlier agent knew, and when it wrote that.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) objects: Vec<Object>,
    pub(super) written: SystemTime,
}

/// Writes the file when something changed, not too often.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    node: String,
    is_dirty: bool,
    due: Instant,
    writing: Option<JoinHandle<Written>>,
    error: Option<String>,
}

type Written = (anyhow::Result<()>, Duration);

impl Store {
    /// Makes the directory if need be.
    pub(super) fn open(dir: &Path, node: &str) -> Self {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let error = made.err().map(|error| error.to_string());
        Self {
            dir: dir.to_owned(),
            node: node.to_owned(),
            is_dirty: false,
            due: Instant::now(),
            writing: None,
            error,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Why the state could not be written the last time.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// What is there; `None` if nothing is, or nothing of use.
    pub(super) fn read(&self) -> Option<Remembered> {
        let path = self.dir.join(FILE);
        match read(&path, &self.node) {
            Ok(remembered) => remembered,
            Err(error) => {
                tracing::warn!("{}: {error:#}: not used", path.display());
                None
            }
        }
    }

    /// Something differs from what was written.
    pub(super) fn touch(&mut self) {
        self.is_dirty = true;
    }

    /// When [`Self::write`] should be called.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.is_dirty && self.writing.is_none()).then_some(self.due)
    }

    /// Waits for the write that is under way, for ever if none is. Whether [`Self::error`] says
    /// something else now.
    pub(super) async fn written(&mut self) -> bool {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let before = self.error.clone();
        let done = writing.await;
        self.writing = None;
        match done {
            Ok((result, took)) => {
                self.due = Instant::now() + EVERY.max(took * SHARE);
                self.error = result.err().map(|error| format!("{error:#}"));
            }
            Err(error) => self.error = Some(error.to_string()),
        }
        if self.error.is_some() {
            self.is_dirty = true;
        }
        self.error != before
    }

    /// Writes these in the background, if it is time.
    pub(super) fn write<'a>(&mut self, objects: impl Iterator<Item = (Kind, &'a Packed)>) {
        if self.writing.is_some() || !self.is_dirty || self.due > Instant::now() {
            return;
        }
        self.is_dirty = false;
        let (path, content) = (self.dir.join(FILE), self.content(objects));
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            (write(&path, &content), start.elapsed())
        }));
    }

    /// Writes these now, if they are not written yet: the last chance.
    pub(super) async fn finish<'a>(&mut self, objects: impl Iterator<Item = (Kind, &'a Packed)>) {
        if self.writing.is_some() {
            self.written().await;
        }
        if std::mem::take(&mut self.is_dirty)
            && let Err(error) = write(&self.dir.join(FILE), &self.content(objects))
        {
            tracing::warn!("{}: {error:#}", self.dir.display());
        }
    }

    fn content<'a>(&self, objects: impl Iterator<Item = (Kind, &'a Packed)>) -> Content {
        let mut content = Content { node: self.node.clone(), objects: BTreeMap::new() };
        for (kind, packed) in objects {
            content.objects.entry(kind).or_default().push(packed.clone());
        }
        content
    }
}

fn read(path: &Path, expected: &str) -> anyhow::Result<Option<Remembered>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let written = file.metadata()?.modified()?;
    let stored: Stored = serde_json::from_reader(BufReader::new(file))?;
    let Stored { format, node, services, slices, nodes } = stored;
    ensure!(format == FORMAT, "format {format} instead of {FORMAT}");
    ensure!(node == expected, "of node {node}");
    let objects = services.into_iter().map(Object::Service);
    let objects = objects.chain(slices.into_iter().map(Object::EndpointSlice));
    let objects = objects.chain(nodes.into_iter().map(Object::Node)).collect();
    Ok(Some(Remembered { objects, written }))
}

fn write(path: &Path, content: &Content) -> anyhow::Result<()> {
    let Content { node, objects } = content;
    let node = serde_json::to_string(node)?;
    write_atomically(path, |file| {
        write!(file, "{{\"format\":{FORMAT},\"node\":{node}")?;
        for kind in Kind::SERVED {
            let list = match kind {
                Kind::Service => "services",
                Kind::EndpointSlice => "slices",
                Kind::Node => "nodes",
                _ => continue,
            };
            write!(file, ",\"{list}\":[")?;
            for (index, packed) in objects.get(&kind).into_iter().flatten().enumerate() {
                if index > 0 {
                    file.write_all(b",")?;
                }
                file.write_all(&packed.json())?;
            }
            file.write_all(b"]")?;
        }
        Ok(file.write_all(b"}")?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Object {
        let mut service = Service::default();
        service.metadata.name = Some(name.to_owned());
        service.into()
    }

    #[tokio::test]
    async fn what_was_written_is_read_on_the_same_node_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut store = Store::open(&path, "a");
        assert_eq!(store.error(), None);
        assert!(store.read().is_none());
        let objects = [service("x"), EndpointSlice::default().into(), Node::default().into()];
        let packed: Vec<(Kind, Packed)> =
            objects.iter().map(|object| (object.id().kind, Packed::new(object))).collect();
        let all = || packed.iter().map(|(kind, packed)| (*kind, packed));
        store.finish(all()).await;
        assert!(store.read().is_none(), "nothing changed, nothing is written");
        store.touch();
        store.write(all());
        store.written().await;
        assert_eq!(store.error(), None);
        assert_eq!(store.read().unwrap().objects, objects);
        assert!(Store::open(&path, "b").read().is_none());

        // The next write waits, the last one doesn't.
        store.touch();
        store.write(all());
        assert!(store.writing.is_none() && store.due().unwrap() > Instant::now());
        store.finish(all().take(1)).await;
        assert_eq!(store.read().unwrap().objects, objects[..1]);
    }

    #[tokio::test]
    async fn a_broken_file_is_not_used_and_a_directory_that_cannot_be_made_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"format\": 1, \"node\": \"a\", \"serv").unwrap();
        assert!(Store::open(dir.path(), "a").read().is_none());
        fs::write(dir.path().join("file"), "").unwrap();
        let mut store = Store::open(&dir.path().join("file/state"), "a");
        assert!(store.error().is_some());
        store.touch();
        store.write(std::iter::empty());
        store.written().await;
        assert!(store.error().is_some() && store.due().is_some(), "it is tried again");
    }
}
