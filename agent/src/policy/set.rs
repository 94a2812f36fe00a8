//! All policies of a folder: loaded together, refused together.

use std::{fs, io, path::Path, sync::Arc};

use super::{
    Policy,
    check::{Upstreams, check},
    error::{PolicyError, PolicyErrors, Source},
    file::File,
    read::read,
};

/// Largest policy file.
const MAX_FILE: u64 = 1 << 20;

/// The policies in force. Immutable; a reload makes another.
#[derive(Debug)]
pub struct PolicySet {
    policies: Vec<Arc<Policy>>,
    hash: String,
}

impl PolicySet {
    /// Loads every `*.toml` of a folder but the decision cases (`*.cases.toml`) and hidden files.
    ///
    /// # Errors
    /// Everything that is wrong with any file, or with the files together. An empty folder is an empty set: nothing is
    /// governed, and nothing is allowed.
    pub fn load(dir: &Path) -> Result<Self, PolicyErrors> {
        let unreadable = |path: &Path, error: io::Error| PolicyError::file(path, format!("cannot be read: {error}"));
        let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        let mut paths: Vec<_> = match listed {
            Ok(paths) => paths,
            Err(error) => return Err(PolicyErrors::new(vec![unreadable(dir, error)])),
        };
        paths.retain(|path| is_policy(path));
        paths.sort();
        let mut errors = Vec::new();
        let mut sources = Vec::new();
        for path in paths {
            match read_file(&path) {
                Ok(text) => sources.push(Source { name: path.to_string_lossy().into(), text: text.into() }),
                Err(error) => errors.push(unreadable(&path, error)),
            }
        }
        Self::from_sources(&sources, errors)
    }

    /// Loads one file, as [`PolicySet::load`] does a folder.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub fn load_file(path: &Path) -> Result<Self, PolicyErrors> {
        match read_file(path) {
            Ok(text) => Self::from_texts([(path.to_string_lossy(), text)]),
            Err(error) => Err(PolicyErrors::new(vec![PolicyError::file(path, format!("cannot be read: {error}"))])),
        }
    }

    /// Loads texts under the names of their files.
    ///
    /// # Errors
    /// As [`PolicySet::load`].
    pub fn from_texts(
        files: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
    ) -> Result<Self, PolicyErrors> {
        let sources: Vec<Source> =
            files.into_iter().map(|(n, t)| Source { name: n.as_ref().into(), text: t.as_ref().into() }).collect();
        Self::from_sources(&sources, Vec::new())
    }

    fn from_sources(sources: &[Source], mut errors: Vec<PolicyError>) -> Result<Self, PolicyErrors> {
        let mut read_files = Vec::new();
        let mut policies = Vec::new();
        for source in sources {
            let found = read::<File>(source);
            let syntax: Vec<_> = found.errors.iter().filter_map(PolicyError::span).collect();
            errors.extend(found.errors);
            let Some(file) = found.document else { continue };
            let before = errors.len();
            let lost =
                if found.lost.iter().any(|key| key == "upstream") { Upstreams::SomeLost } else { Upstreams::AllThere };
            policies.extend(check(source, &file, lost, &mut errors).map(Arc::new));
            // What was cut out leaves holes: a finding around one is not a second mistake.
            let mut place = 0;
            errors.retain(|error| {
                let around = |inner: &std::ops::Range<usize>| {
                    error.span().is_some_and(|outer| outer.start <= inner.start && inner.end <= outer.end)
                };
                place += 1;
                place <= before || !syntax.iter().any(around)
            });
            read_files.push((source, file));
        }
        together(&read_files, &mut errors);
        if !errors.is_empty() {
            return Err(PolicyErrors::new(errors));
        }
        let mut hasher = blake3::Hasher::new();
        for source in sources {
            let name = source.name.rsplit('/').next().unwrap_or_default();
            for text in [name, &source.text] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        Ok(Self { policies, hash: hasher.finalize().to_hex().to_string() })
    }

    /// Every policy, in the order of their files.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// The policy of a workload.
    pub fn by_workload(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.iter().find(|policy| *policy.workload.name == *name)
    }

    /// The policy of a cgroup, by its path relative to the cgroup2 root.
    pub fn by_cgroup(&self, path: &str) -> Option<&Arc<Policy>> {
        let path = path.trim_start_matches('/');
        self.policies.iter().find(|policy| policy.matches_cgroup(path))
    }

    /// BLAKE3 over names (without folders) and texts of the files, in hex: which policy was in force, for records and `status`.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// What is wrong between files.
fn together(files: &[(&Source, File)], errors: &mut Vec<PolicyError>) {
    for (i, (source, file)) in files.iter().enumerate() {
        let (name, cgroup) = (&file.workload.value.name, &file.workload.value.cgroup);
        for (earlier, other) in files[..i].iter().map(|(source, file)| (source, &file.workload.value)) {
            if name.value == other.name.value {
                let line = earlier.position(other.name.span.start).0;
                let message = format!("two policies are for the workload `{}`", name.value);
                let error = PolicyError::at(source, name.span.clone(), message);
                errors.push(error.help(format!("the other is {}:{line}", earlier.name)));
            }
            let globs = [cgroup, &other.cgroup].map(|at| crate::action::Glob::new(&at.value, '/'));
            if let [Ok(a), Ok(b)] = globs
                && a.overlaps(&b)
            {
                let line = earlier.position(other.cgroup.span.start).0;
                let message = format!("this cgroup pattern and `{b}` can match the same cgroup");
                let error = PolicyError::at(source, cgroup.span.clone(), message);
                errors.push(error.help(format!("the other is {}:{line}", earlier.name)));
            }
        }
    }
}

fn is_policy(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.ends_with(".toml") && !name.ends_with(".cases.toml") && !name.starts_with('.')
}

fn read_file(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes, more than {MAX_FILE}")));
    }
    fs::read_to_string(path)
}
