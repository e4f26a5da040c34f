//! Which documents of which files make which objects. Pure: contents in, touched objects out.
//!
//! Files that do not parse and Services that are refused keep what they were last good for; of two
//! documents of the same object the first by path and position is taken.

use super::object::{Json, Manifest, ObjectKey, ObjectKind, read};
use super::parse::{Parsed, parse};
use super::shape::{Cut, Shape};
use super::{defaults, validate};
use crate::source::{Problem, SourceRefusal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What became of a file.
#[derive(Clone, Debug)]
pub enum Edit {
    /// It reads like this now.
    Content(Vec<u8>),
    /// It is there and cannot be read, for this reason.
    Unreadable(String),
    /// It is gone, and not only for a moment.
    Gone,
}

/// Position of a document: file, then index in the file.
type Position = (Arc<Path>, usize);

#[derive(Debug, Default)]
struct File {
    shape: Shape,
    documents: BTreeMap<usize, Arc<ObjectKey>>,
    problems: Vec<SourceRefusal>,
}

/// The documents of one object by position. Nearly always one: the node of a map would take ten
/// times its place.
#[derive(Debug, Default)]
struct Documents(Vec<(Position, Json)>);

impl Documents {
    fn find(&self, position: &Position) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(position))
    }

    fn get(&self, position: &Position) -> Option<&Json> {
        let (_, json) = self.0.get(self.find(position).ok()?)?;
        Some(json)
    }

    fn put(&mut self, position: Position, json: Json) {
        match self.find(&position) {
            Ok(index) => self.0[index].1 = json,
            Err(index) => {
                self.0.reserve_exact(1);
                self.0.insert(index, (position, json));
            }
        }
    }

    fn remove(&mut self, position: &Position) {
        if let Ok(index) = self.find(position) {
            self.0.remove(index);
        }
    }
}

impl File {
    /// Whether a text that parses is the last one cut off where nobody would end it.
    fn looks_half_written(&self, parsed: &Parsed<Document>, bytes: &[u8]) -> bool {
        let loses = || {
            let has: BTreeSet<_> = parsed.documents.iter().map(|new| &new.key).collect();
            self.documents.values().any(|key| !has.contains(&**key))
        };
        match self.shape.cut(bytes) {
            Some(Cut::WithinLine) => true,
            Some(Cut::WithinDocument) => loses(),
            Some(Cut::BetweenDocuments) | None => false,
        }
    }
}

/// A document of a file, completed and looked at.
struct Document {
    key: ObjectKey,
    /// The object, or why it cannot be taken.
    content: Result<Json, String>,
}

impl Document {
    /// Defaults and validates.
    fn of(mut manifest: Manifest) -> Self {
        let key = manifest.key();
        let mut refusal = None;
        if let Manifest::Service(service) = &mut manifest {
            defaults::apply(service);
            refusal = validate::validate(service).sentence(&key.name.name);
        }
        let content = match refusal {
            Some(sentence) => Err(sentence),
            None => manifest
                .to_json()
                .ok_or_else(|| format!("{key} cannot be kept")),
        };
        Self { key, content }
    }
}

/// Every file and the objects it claims.
#[derive(Debug, Default)]
pub struct Claims {
    files: BTreeMap<Arc<Path>, File>,
    objects: BTreeMap<Arc<ObjectKey>, Documents>,
    recalled: Kept,
}

/// The last good objects of files that are troubled now: a restart must not lose them.
pub type Kept = BTreeMap<PathBuf, Vec<Value>>;

/// What an edit of files changed.
#[derive(Debug, Default)]
pub struct Touched {
    /// Objects of which at least one document changed.
    pub objects: BTreeSet<ObjectKey>,
    /// Troubles of files before and after.
    pub problems: Vec<(Vec<SourceRefusal>, Vec<SourceRefusal>)>,
}

impl Claims {
    /// Nothing but what was kept of files that were troubled when the last agent ended.
    pub fn new(kept: Kept) -> Self {
        Self {
            recalled: kept,
            ..Self::default()
        }
    }

    /// What to keep for the next start.
    pub fn kept(&self) -> Kept {
        let stays = |problem: &SourceRefusal| {
            let stays = [Problem::Unparsable, Problem::Unreadable, Problem::Refused];
            stays.contains(&problem.problem)
        };
        let troubled = self
            .files
            .iter()
            .filter(|(_, file)| file.problems.iter().any(stays));
        troubled
            .filter(|(_, file)| !file.documents.is_empty())
            .map(|(path, file)| {
                let json = |(index, key): (&usize, &Arc<ObjectKey>)| {
                    self.objects.get(key)?.get(&(path.clone(), *index))
                };
                let objects = file.documents.iter().filter_map(json);
                (
                    path.to_path_buf(),
                    objects.filter_map(|json| read(json)).collect(),
                )
            })
            .collect()
    }

    /// A file seen for the first time, with what was kept of it.
    fn recall(&mut self, path: &Arc<Path>, touched: &mut BTreeSet<ObjectKey>) -> File {
        let mut file = File::default();
        let mut documents = BTreeMap::new();
        for (index, value) in self
            .recalled
            .remove(&**path)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
            let kind = ObjectKind::of(field("apiVersion"), field("kind"));
            let manifest = kind.and_then(|kind| Manifest::from_value(kind, value).ok());
            documents.extend(
                manifest.and_then(|manifest| Some((index, (manifest.key(), manifest.to_json()?)))),
            );
        }
        self.replace(path, &mut file, documents, touched);
        file
    }

    /// The document that is taken for an object.
    pub fn winner(&self, key: &ObjectKey) -> Option<(&Path, &Json)> {
        let ((path, _), json) = self.objects.get(key)?.0.first()?;
        Some((path, json))
    }

    /// The documents that are not taken because another file has the object, too.
    pub fn losers(&self, key: &ObjectKey) -> Vec<SourceRefusal> {
        let Some(documents) = self.objects.get(key) else {
            return Vec::new();
        };
        let mut positions = documents.0.iter().map(|(position, _)| position);
        let Some((taken, _)) = positions.next() else {
            return Vec::new();
        };
        let mut losers: Vec<SourceRefusal> = positions
            .map(|(path, _)| SourceRefusal {
                problem: Problem::Duplicate,
                object: key.to_string(),
                file: Some(path.to_path_buf()),
                sentence: format!(
                    "{key} stands in {} as well; that one is taken, this one is ignored",
                    taken.display()
                ),
            })
            .collect();
        losers.dedup();
        losers
    }

    /// Whether every file could be read and parsed.
    pub fn is_whole(&self) -> bool {
        let broken = |problem: &SourceRefusal| {
            matches!(problem.problem, Problem::Unparsable | Problem::Unreadable)
        };
        !self
            .files
            .values()
            .any(|file| file.problems.iter().any(broken))
    }

    /// Takes edits.
    pub fn edit(&mut self, edits: BTreeMap<PathBuf, Edit>) -> Touched {
        let mut touched = Touched::default();
        for (path, edit) in edits {
            let path: Arc<Path> = path.into();
            let mut file = match self.files.remove(&path) {
                Some(file) => file,
                None => self.recall(&path, &mut touched.objects),
            };
            let before = std::mem::take(&mut file.problems);
            match edit {
                Edit::Gone => {
                    self.replace(&path, &mut file, BTreeMap::new(), &mut touched.objects);
                }
                Edit::Unreadable(reason) => {
                    let stays = if file.documents.is_empty() {
                        ""
                    } else {
                        "; what it held stays"
                    };
                    let sentence = format!("cannot be read: {reason}{stays}");
                    file.problems
                        .push(whole_file(Problem::Unreadable, &path, sentence));
                    self.files.insert(path.clone(), file);
                }
                Edit::Content(bytes) => {
                    self.content(&path, &mut file, &bytes, &mut touched.objects);
                    self.files.insert(path.clone(), file);
                }
            }
            let after = self.files.get(&path).map(|file| file.problems.clone());
            touched.problems.push((before, after.unwrap_or_default()));
        }
        // Files that were troubled and are no more: deleted while no agent ran.
        self.recalled.clear();
        touched
    }

    fn content(
        &mut self,
        path: &Arc<Path>,
        file: &mut File,
        bytes: &[u8],
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        let stays = if file.documents.is_empty() {
            ""
        } else {
            "; its last good objects stay"
        };
        match parse(path, bytes, &Document::of) {
            Ok(parsed) if file.looks_half_written(&parsed, bytes) => {
                let lines = bytes.split(|byte| *byte == b'\n').count();
                let sentence = format!("line {lines}: the file looks half-written{stays}");
                file.problems
                    .push(whole_file(Problem::Unparsable, path, sentence));
            }
            Ok(parsed) => {
                file.shape = Shape::of(bytes);
                let documents = self.accept(path, file, parsed);
                self.replace(path, file, documents, touched);
            }
            Err(error) => {
                let sentence = format!("{error}{stays}");
                file.problems
                    .push(whole_file(Problem::Unparsable, path, sentence));
            }
        }
    }

    /// A refused Service keeps its last accepted version from this file.
    fn accept(
        &self,
        path: &Arc<Path>,
        file: &mut File,
        parsed: Parsed<Document>,
    ) -> BTreeMap<usize, (ObjectKey, Json)> {
        for kind in parsed.ignored {
            let sentence = format!("{kind} is not a kind that services need; ignored");
            let object = kind;
            let file_path = Some(path.to_path_buf());
            let problem = Problem::Ignored;
            file.problems.push(SourceRefusal {
                problem,
                object,
                file: file_path,
                sentence,
            });
        }
        let mut documents = BTreeMap::new();
        for (index, Document { key, content }) in parsed.documents.into_iter().enumerate() {
            let mut sentence = match content {
                Ok(json) => {
                    documents.insert(index, (key, json));
                    continue;
                }
                Err(sentence) => sentence,
            };
            let mut positions = file.documents.iter();
            let before = positions
                .find(|(_, known)| ***known == key)
                .map(|(index, _)| *index);
            let kept = before
                .and_then(|index| self.objects.get(&key)?.get(&(path.clone(), index)).cloned());
            if let Some(json) = kept {
                sentence.push_str("; the last accepted version stays");
                documents.insert(index, (key.clone(), json));
            }
            file.problems.push(SourceRefusal {
                problem: Problem::Refused,
                object: key.to_string(),
                file: Some(path.to_path_buf()),
                sentence,
            });
        }
        documents
    }

    fn replace(
        &mut self,
        path: &Arc<Path>,
        file: &mut File,
        documents: BTreeMap<usize, (ObjectKey, Json)>,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        for (index, key) in std::mem::take(&mut file.documents) {
            let position = (path.clone(), index);
            let Some(claims) = self.objects.get_mut(&key) else {
                continue;
            };
            let same = documents
                .get(&index)
                .is_some_and(|(new, json)| *new == *key && claims.get(&position) == Some(json));
            if same {
                continue;
            }
            claims.remove(&position);
            if claims.0.is_empty() {
                self.objects.remove(&key);
            }
            touched.insert(ObjectKey::clone(&key));
        }
        for (index, (key, json)) in documents {
            let position = (path.clone(), index);
            // One key for the object and for every file that has it.
            let key = match self.objects.get_key_value(&key) {
                Some((known, _)) => Arc::clone(known),
                None => Arc::new(key),
            };
            let claims = self.objects.entry(Arc::clone(&key)).or_default();
            if claims.get(&position) != Some(&json) {
                claims.put(position, json);
                touched.insert(ObjectKey::clone(&key));
            }
            file.documents.insert(index, key);
        }
    }
}

fn whole_file(problem: Problem, path: &Path, sentence: String) -> SourceRefusal {
    SourceRefusal {
        problem,
        object: String::new(),
        file: Some(path.to_path_buf()),
        sentence,
    }
}
