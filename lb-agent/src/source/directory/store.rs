//! The directory's pure core: edits of files in, changes of objects and reports out.

use super::allocate::Allocator;
use super::claims::{Claims, Edit, Kept};
use super::derive::{Derived, OutputKey};
use super::holdings::{Allocation, Ranges};
use super::object::read;
use crate::model::desired::ObjectName;
use crate::source::{Change, Kind, Object, Report, SourceRefusal};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Everything known of a directory.
#[derive(Debug)]
pub struct Store {
    claims: Claims,
    derived: Derived,
    listed: bool,
}

/// What must be written down for a restart to change nothing.
#[derive(Debug, Default)]
pub struct Written {
    /// Who holds which addresses and ports.
    pub held: BTreeMap<ObjectName, Allocation>,
    /// The last good objects of troubled files.
    pub kept: Kept,
}

/// What one set of edits leads to.
#[derive(Debug)]
pub struct Step {
    listing: bool,
    changed: BTreeSet<OutputKey>,
    /// What there is to say.
    pub reports: Vec<Report>,
}

impl Store {
    /// A store that has read nothing, for this node, continuing from what was written down.
    pub fn new(node: &str, ranges: Ranges, written: Written) -> Self {
        let derived = Derived::new(node.to_owned(), Allocator::new(ranges, written.held));
        Self {
            claims: Claims::new(written.kept),
            derived,
            listed: false,
        }
    }

    /// The last good objects of files that are troubled now.
    pub fn kept(&self) -> Kept {
        self.claims.kept()
    }

    /// Who holds which addresses and ports.
    pub const fn held(&self) -> &BTreeMap<ObjectName, Allocation> {
        self.derived.allocator().held()
    }

    /// Another number whenever [`Self::held`] may be another.
    pub const fn revision(&self) -> u64 {
        self.derived.allocator().revision()
    }

    /// Takes edits. The first call is the complete listing.
    pub fn update(&mut self, edits: BTreeMap<PathBuf, Edit>) -> Step {
        let touched = self.claims.edit(edits);
        let listing = !std::mem::replace(&mut self.listed, true);
        if listing && self.claims.is_whole() {
            self.derived.release_unclaimed(&self.claims);
        }
        let outcome = self.derived.update(&touched.objects, &self.claims);
        let problems = touched.problems.into_iter().chain(outcome.problems);
        Step {
            listing,
            changed: outcome.changed,
            reports: reports(problems),
        }
    }

    /// The step as changes, made one by one: ten thousand typed objects at once would cost more
    /// memory than all the rest.
    pub fn changes<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = Change> + 'a {
        let restarts = Kind::ALL.into_iter().map(Change::Restart);
        let completes = Kind::ALL.into_iter().map(Change::Complete);
        let outputs = self.derived.outputs();
        let gone = |key: &&OutputKey| !outputs.contains_key(*key);
        let delete = |key: &OutputKey| Change::Delete(key.0, key.1.clone());
        // A Service goes before another may take its address; a slice goes after its successor.
        let services = step
            .changed
            .iter()
            .filter(gone)
            .filter(|key| key.0 == Kind::Service);
        let others = step
            .changed
            .iter()
            .filter(gone)
            .filter(|key| key.0 != Kind::Service);
        let applied = step
            .changed
            .iter()
            .filter_map(|key| self.object(key))
            .map(Change::Apply);
        restarts
            .filter(|_| step.listing)
            .chain(services.map(delete))
            .chain(applied)
            .chain(others.map(delete))
            .chain(completes.filter(|_| step.listing))
    }

    fn object(&self, key: &OutputKey) -> Option<Object> {
        let json = self.derived.outputs().get(key)?;
        match key.0 {
            Kind::Service => read(json).map(Object::Service),
            Kind::EndpointSlice => read(json).map(Object::EndpointSlice),
            Kind::Node => read(json).map(Object::Node),
            Kind::ServiceCidr => read(json).map(Object::ServiceCidr),
            Kind::Pod => read(json).map(Object::Pod),
            Kind::Namespace => read(json).map(Object::Namespace),
        }
    }
}

/// Resolutions first: one trouble may turn into another of the same identity.
fn reports(
    problems: impl Iterator<Item = (Vec<SourceRefusal>, Vec<SourceRefusal>)>,
) -> Vec<Report> {
    let (mut resolved, mut refused) = (Vec::new(), Vec::new());
    for (before, after) in problems {
        let identity = |problem: &SourceRefusal| (problem.object.clone(), problem.file.clone());
        let still: BTreeSet<_> = after.iter().map(identity).collect();
        for problem in before
            .iter()
            .filter(|problem| !still.contains(&identity(problem)))
        {
            let (object, file) = identity(problem);
            resolved.push(Report::Resolved { object, file });
        }
        refused.extend(
            after
                .into_iter()
                .filter(|problem| !before.contains(problem))
                .map(Report::Refused),
        );
    }
    resolved.extend(refused);
    resolved
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
