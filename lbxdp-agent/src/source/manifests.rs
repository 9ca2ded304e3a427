//! Services, EndpointSlices and Nodes from the YAML and JSON files of a directory, and pools from which
//! Services get their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::files::{self, Format, ReadError};
use super::give::Giver;
use super::parse::{Contents, Entry, Fault, Lost, parse};
use super::{ObjectId, Snapshot, Sourced};
use crate::layer2::Resources;
use crate::model::Problem;
use crate::problem::Problems;
use crate::vip::Tally;

/// The manifests directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("manifests directory {}: {source}", dir.display())]
pub struct OpenError {
    dir: PathBuf,
    source: io::Error,
}

/// Reads a directory once. A loader that is kept ([`Manifests`]) also survives invalid edits.
pub fn load(dir: impl Into<PathBuf>) -> Result<Snapshot, OpenError> {
    Ok(Manifests::open(dir)?.load())
}

/// Reads a directory again and again, and remembers the last good version of every object.
///
/// - An object that becomes undecodable keeps its last good version.
/// - A document whose object cannot even be named, or a file that cannot be read, keeps the last
///   good version of everything the file held and now lacks: nobody knows what was meant.
/// - A file or a document that is really gone takes its objects with it.
/// - A directory that cannot be listed changes nothing.
///
/// The memory does not outlive the process.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    files: BTreeMap<String, FileState>,
    /// Gives addresses to Services, if somebody is to.
    giver: Option<Giver>,
    last: Option<Snapshot>,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct FileState {
    /// Hash of the text that was parsed last: what has not changed is not parsed again.
    digest: Option<u64>,
    /// What the file says now.
    current: BTreeMap<ObjectId, Entry>,
    /// What it said before it was broken.
    kept: BTreeMap<ObjectId, Entry>,
    problems: Vec<Problem>,
}

impl Manifests {
    /// A directory that is not there at the start is a mistake in the configuration, not an empty
    /// set of Services.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let dir = dir.into();
        match fs::read_dir(&dir) {
            Ok(_) => Ok(Self { dir, files: BTreeMap::new(), giver: None, last: None }),
            Err(source) => Err(OpenError { dir, source }),
        }
    }

    /// The same with somebody who gives Services addresses of the pools that the files have.
    #[must_use]
    pub fn giving(mut self, giver: Giver) -> Self {
        self.giver = Some(giver);
        self
    }

    /// What there is to see of it.
    pub fn tally(&self) -> Arc<Tally> {
        self.giver.as_ref().map(Giver::tally).unwrap_or_default()
    }

    /// From where which addresses are announced, as the files say.
    pub fn resources(&self) -> watch::Receiver<Option<Arc<Resources>>> {
        self.giver.as_ref().map_or_else(|| watch::channel(None).1, Giver::resources)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the directory holds now, or what is kept of it.
    pub fn load(&mut self) -> Snapshot {
        let mut problems = Problems::default();
        match files::list(&self.dir) {
            Ok(names) => self.read_files(names),
            Err(error) => problems.about(&self.dir.to_string_lossy(), "directory").error(
                "",
                format!("cannot be read ({error}): what was read from it before stays in use"),
            ),
        }
        let (mut objects, mut given) = (Vec::new(), Vec::new());
        for Sourced { origin, object } in self.merged(&mut problems) {
            match object {
                Entry::Served(object) => objects.push(Sourced::new(origin, object)),
                Entry::Giving(document) => given.push(Sourced::new(origin, document)),
            }
        }
        if let Some(giver) = &mut self.giver {
            giver.give(&mut objects, given, &mut problems);
        }
        for file in self.files.values() {
            problems.extend(file.problems.iter().cloned());
        }
        let snapshot = Snapshot { objects, problems: problems.into_sorted() };
        self.last = Some(snapshot.clone());
        snapshot
    }

    /// As [`Self::load`], but `None` when nothing differs from the last snapshot.
    pub fn refresh(&mut self) -> Option<Snapshot> {
        let last = self.last.take();
        let now = self.load();
        (last.as_ref() != Some(&now)).then_some(now)
    }

    fn read_files(&mut self, names: Vec<(String, Format)>) {
        let listed: BTreeSet<_> = names.iter().map(|(name, _)| name.clone()).collect();
        self.files.retain(|name, _| listed.contains(name));
        for (name, format) in names {
            match files::read(&self.dir.join(&name)) {
                Ok(text) => self.files.entry(name.clone()).or_default().read(&name, &text, format),
                Err(ReadError::Gone) => {
                    self.files.remove(&name);
                }
                Err(error) => self.files.entry(name.clone()).or_default().unreadable(&name, &error),
            }
        }
    }

    /// Every object once. What a file says now goes before what another one said once; apart from
    /// that the first file in the order of names wins.
    fn merged(&self, problems: &mut Problems) -> Vec<Sourced<Entry>> {
        let mut merged: BTreeMap<&ObjectId, Sourced<Entry>> = BTreeMap::new();
        for (name, file) in &self.files {
            for (id, object) in &file.current {
                if let Some(first) = merged.get(id) {
                    let message = format!(
                        "also in {}, whose version is used; the one in {name} is ignored",
                        first.origin
                    );
                    problems.about(name, &id.to_string()).error("", message);
                } else {
                    merged.insert(id, Sourced::new(name, object.clone()));
                }
            }
        }
        for (name, file) in &self.files {
            for (id, object) in &file.kept {
                merged.entry(id).or_insert_with(|| Sourced::new(name, object.clone()));
            }
        }
        merged.into_values().collect()
    }
}

impl FileState {
    fn read(&mut self, name: &str, text: &str, format: Format) {
        let digest = Some(digest(text));
        if self.digest == digest {
            return;
        }
        let Contents { objects, faults } = parse(text, format);
        let mut before = std::mem::take(&mut self.kept);
        before.append(&mut self.current);
        let lost: BTreeSet<&Lost> = faults.iter().map(|fault| &fault.lost).collect();
        self.current = objects.into_iter().map(|object| (object.id(), object)).collect();
        self.kept = before
            .into_iter()
            .filter(|(id, _)| {
                !self.current.contains_key(id)
                    && (lost.contains(&Lost::Anything) || lost.contains(&Lost::Object(id.clone())))
            })
            .collect();
        let mut problems = Problems::default();
        for Fault { object, field, message, lost } in &faults {
            let mut about = problems.about(name, object);
            let message = format!("{message}: {}", self.consequence(lost));
            match lost {
                Lost::Nothing => about.warning(field, message),
                Lost::Repetition | Lost::Object(_) | Lost::Anything => about.error(field, message),
            }
        }
        self.problems = problems.into_sorted();
        self.digest = digest;
    }

    fn consequence(&self, lost: &Lost) -> String {
        match lost {
            Lost::Object(id) if self.kept.contains_key(id) => {
                "its last good version stays in use".to_owned()
            }
            Lost::Object(id) if self.current.contains_key(id) => {
                "ignored, the file has a good version of it too".to_owned()
            }
            Lost::Anything if !self.kept.is_empty() => {
                format!("ignored, {}", kept_in_use(self.kept.len()))
            }
            Lost::Repetition => "ignored, the first one counts".to_owned(),
            Lost::Object(_) | Lost::Anything | Lost::Nothing => "ignored".to_owned(),
        }
    }

    fn unreadable(&mut self, name: &str, error: &ReadError) {
        let mut current = std::mem::take(&mut self.current);
        self.kept.append(&mut current);
        self.digest = None;
        let consequence = match self.kept.len() {
            0 => "ignored".to_owned(),
            count => kept_in_use(count),
        };
        let mut problems = Problems::default();
        problems.about(name, "whole file").error("", format!("{error}: {consequence}"));
        self.problems = problems.into_sorted();
    }
}

fn kept_in_use(count: usize) -> String {
    let objects = if count == 1 { "object" } else { "objects" };
    format!("the last good version of {count} {objects} of this file stays in use")
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::model::Severity;

    struct Dir {
        temp: TempDir,
        manifests: Manifests,
    }

    impl Dir {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let manifests = Manifests::open(temp.path()).unwrap();
            Self { temp, manifests }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.temp.path().join(name), text).unwrap();
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.temp.path().join(name)).unwrap();
        }

        /// `origin: name version` of every Service, and the problems.
        fn load(&mut self) -> (Vec<String>, Vec<String>) {
            let Snapshot { objects, problems } = self.manifests.load();
            let objects = objects.iter().map(|Sourced { origin, object }| {
                let crate::source::Object::Service(service) = object else { panic!("{object:?}") };
                let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
                let name = service.metadata.name.as_deref();
                format!("{origin}: {} {}", name.unwrap(), address.unwrap())
            });
            (objects.collect(), problems.iter().map(Problem::to_string).collect())
        }
    }

    fn service(name: &str, address: &str) -> String {
        // Numbers are no addresses: unquoted they would have the wrong type.
        let address =
            if address.parse::<u8>().is_ok() { format!("'{address}'") } else { address.to_owned() };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {address}}}\n"
        )
    }

    fn both(a: &str, b: &str) -> String {
        format!("{a}---\n{b}")
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn a_missing_directory_at_the_start_is_an_error() {
        let error = Manifests::open("/does/not/exist").unwrap_err().to_string();
        assert!(error.contains("/does/not/exist") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn objects_carry_their_file() {
        let mut dir = Dir::new();
        dir.write("b.yaml", &service("one", "1"));
        dir.write("a.yaml", &both(&service("two", "2"), &service("three", "3")));
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["b.yaml: one 1", "a.yaml: three 3", "a.yaml: two 2"]);
        assert_eq!(problems, NOTHING);
    }

    #[test]
    fn an_object_that_becomes_invalid_keeps_its_last_good_version() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &both(&service("one", "1"), &service("two", "2")));
        dir.load();
        dir.write("a.yaml", &both(&service("one", "[]"), &service("two", "3")));
        for _ in 0..2 {
            let (objects, problems) = dir.load();
            assert_eq!(objects, ["a.yaml: one 1", "a.yaml: two 3"]);
            let [problem] = &problems[..] else { panic!("{problems:?}") };
            assert!(
                problem.starts_with("a.yaml: Service default/one: spec.clusterIP: "),
                "{problem}"
            );
            assert!(problem.ends_with("its last good version stays in use"), "{problem}");
        }
        dir.write("a.yaml", &both(&service("one", "4"), &service("two", "3")));
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["a.yaml: one 4", "a.yaml: two 3"]);
        assert_eq!(problems, NOTHING);
    }

    #[test]
    fn an_invalid_object_without_a_good_version_is_ignored() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &both(&service("one", "[]"), &service("two", "2")));
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["a.yaml: two 2"]);
        assert!(problems[0].ends_with(": ignored"), "{problems:?}");
    }

    #[test]
    fn a_broken_document_keeps_what_the_file_held_and_takes_the_rest() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &both(&service("one", "1"), &service("two", "2")));
        dir.load();
        dir.write("a.yaml", &both("{{{\n", &service("two", "3")));
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["a.yaml: one 1", "a.yaml: two 3"]);
        assert!(problems[0].starts_with("a.yaml: document 1 (line 1): not valid YAML"));
        assert!(
            problems[0].ends_with("the last good version of 1 object of this file stays in use")
        );
    }

    #[test]
    fn an_object_is_kept_through_several_bad_edits() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &service("one", "1"));
        dir.load();
        for text in ["{{{", "kind: [", &service("one", "{}")] {
            dir.write("a.yaml", text);
            assert_eq!(dir.load().0, ["a.yaml: one 1"]);
        }
        dir.write("a.yaml", &service("other", "2"));
        assert_eq!(dir.load().0, ["a.yaml: other 2"]);
    }

    #[test]
    fn a_deleted_file_or_document_takes_its_objects_with_it() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &both(&service("one", "1"), &service("two", "2")));
        dir.write("b.yaml", &service("three", "3"));
        dir.load();
        dir.remove("b.yaml");
        dir.write("a.yaml", &service("one", "1"));
        assert_eq!(dir.load(), (vec!["a.yaml: one 1".to_owned()], vec![]));
        dir.write("a.yaml", "{{{");
        dir.load();
        dir.remove("a.yaml");
        assert_eq!(dir.load(), (vec![], vec![]));
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_its_objects() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &service("one", "1"));
        dir.load();
        dir.remove("a.yaml");
        symlink("nowhere", dir.temp.path().join("a.yaml")).unwrap();
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["a.yaml: one 1"]);
        assert!(problems[0].starts_with("a.yaml: whole file: cannot be read"), "{problems:?}");
        dir.remove("a.yaml");
        dir.write("a.yaml", &service("one", "1"));
        assert_eq!(dir.load(), (vec!["a.yaml: one 1".to_owned()], vec![]));
    }

    #[test]
    fn a_directory_that_disappears_keeps_the_last_state() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &service("one", "1"));
        dir.load();
        let path = dir.temp.path().to_owned();
        fs::remove_dir_all(&path).unwrap();
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["a.yaml: one 1"]);
        assert!(problems[0].contains("stays in use"), "{problems:?}");
        fs::create_dir(&path).unwrap();
        assert_eq!(dir.load(), (vec![], vec![]));
    }

    #[test]
    fn of_two_files_with_the_same_object_the_first_wins() {
        let mut dir = Dir::new();
        dir.write("b.yaml", &service("one", "2"));
        dir.write("a.yaml", &service("one", "1"));
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["a.yaml: one 1"]);
        let expected = "b.yaml: Service default/one: also in a.yaml, whose version is used; \
                        the one in b.yaml is ignored";
        assert_eq!(problems, [expected]);
    }

    #[test]
    fn an_object_that_moves_out_of_a_broken_file_is_not_held_back() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &service("one", "1"));
        dir.load();
        dir.write("a.yaml", "{{{");
        dir.write("b.yaml", &service("one", "2"));
        let (objects, problems) = dir.load();
        assert_eq!(objects, ["b.yaml: one 2"]);
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_config_map_update_is_seen() {
        let mut dir = Dir::new();
        let root = dir.temp.path().to_owned();
        for version in ["1", "2"] {
            let data = root.join(format!("..v{version}"));
            fs::create_dir(&data).unwrap();
            fs::write(data.join("a.yaml"), service("one", version)).unwrap();
            symlink(format!("..v{version}"), root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
            if version == "1" {
                symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
            }
            assert_eq!(dir.load().0, [format!("a.yaml: one {version}")]);
        }
    }

    #[test]
    fn refreshing_without_a_change_gives_nothing() {
        let mut dir = Dir::new();
        dir.write("a.yaml", &both(&service("one", "1"), "{{{"));
        assert!(dir.manifests.refresh().is_some());
        assert!(dir.manifests.refresh().is_none());
        dir.write("a.yaml", &service("one", "2"));
        assert!(dir.manifests.refresh().is_some());
        assert!(dir.manifests.refresh().is_none());
    }

    #[test]
    fn kinds_that_are_not_used_are_warnings() {
        let mut dir = Dir::new();
        dir.write("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n");
        let problems = dir.manifests.load().problems;
        assert_eq!(problems[0].severity, Severity::Warning);
        let expected = "a.yaml: Pod p: kind: kind \"Pod\" of \"v1\" is not used here: ignored";
        assert_eq!(problems[0].to_string(), expected);
    }

    #[test]
    fn text_of_a_file_cannot_drive_the_terminal() {
        let mut dir = Dir::new();
        dir.write(
            "a.yaml",
            "apiVersion: \"v1\\e[2J\"\nkind: \"Po\\nd\"\nmetadata: {name: \"\\e[31m\"}",
        );
        dir.write("b.yaml", "[\"\u{1b}[2J");
        for problem in dir.manifests.load().problems {
            assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
        }
    }
}
