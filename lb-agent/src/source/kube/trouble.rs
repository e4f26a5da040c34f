//! What went wrong with a watch: what to do about it and what to tell people. Pure.

use crate::source::Problem;
use kube::core::Status;
use kube::runtime::watcher;
use std::error::Error;

/// What an error of a watch means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// 410: the server forgot our place; the watcher lists anew.
    Expired,
    /// 400 or 422: the server does not know what was asked for.
    Unsupported,
    /// 403 or 401: not allowed.
    Denied,
    /// 404: the server does not have the resource.
    Absent,
    /// No answer at all.
    Unreachable,
    /// A watch that ran broke off; the watcher goes on where it was.
    Broken,
    /// The server answers with an error.
    Failed,
}

impl Meaning {
    /// Of an error.
    pub fn of(error: &watcher::Error) -> Self {
        match (status(error), error) {
            (Some(status), _) => match status.code {
                410 => Self::Expired,
                400 | 422 => Self::Unsupported,
                401 | 403 => Self::Denied,
                404 => Self::Absent,
                _ => Self::Failed,
            },
            (None, watcher::Error::WatchFailed(_)) => Self::Broken,
            (None, watcher::Error::NoResourceVersion) => Self::Failed,
            (None, _) => Self::Unreachable,
        }
    }

    /// The kind of trouble, `None` for what belongs to an ordinary life.
    pub const fn problem(self) -> Option<Problem> {
        match self {
            Self::Expired => None,
            Self::Denied => Some(Problem::Forbidden),
            Self::Unreachable | Self::Broken => Some(Problem::Unreachable),
            Self::Unsupported | Self::Absent | Self::Failed => Some(Problem::Failed),
        }
    }
}

/// The API server's own words, if it was it who answered.
fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

/// The sentence for people: what was tried, on what, why it failed and what happens now.
pub fn sentence(error: &watcher::Error, resource: &str, server: &str) -> String {
    let verb = match error {
        watcher::Error::InitialListFailed(_) => "list",
        _ => "watch",
    };
    let stays = format!("what is known of {resource} stays");
    let said = status(error).map(|status| (status.code, status.message.as_str()));
    match (Meaning::of(error), said) {
        (Meaning::Denied, Some((401, message))) => format!(
            "the API server at {server} does not accept this agent's credentials to {verb} \
             {resource} (401: {message}); renew the token or certificate; {stays}"
        ),
        (Meaning::Denied, Some((_, message))) => format!(
            "the API server does not allow this agent to {verb} {resource}: {message}; grant it \
             get, list and watch on {resource} by RBAC; {stays}, the other resources go on"
        ),
        (_, Some((code, message))) => format!(
            "the API server at {server} answers {code} to {verb} {resource}: {message}; trying \
             again; {stays}"
        ),
        (_, None) => format!(
            "cannot {verb} {resource} at the API server {server}: {}; trying again until it \
             works; {stays}",
            chain(error)
        ),
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str) -> watcher::Error {
        let status = Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_denied_resource_is_named_with_the_verb() {
        let said = sentence(&api(403, "services is forbidden"), "services", "https://a");
        assert!(
            said.contains("does not allow this agent to list services"),
            "{said}"
        );
        assert!(said.contains("what is known of services stays"), "{said}");
    }

    #[test]
    fn codes_have_their_meaning() {
        for (code, meaning) in [
            (410, Meaning::Expired),
            (422, Meaning::Unsupported),
            (401, Meaning::Denied),
            (404, Meaning::Absent),
            (503, Meaning::Failed),
        ] {
            assert_eq!(Meaning::of(&api(code, "")), meaning);
        }
        let broken = std::io::Error::other("connection reset");
        let error = watcher::Error::WatchFailed(kube::Error::ReadEvents(broken));
        assert_eq!(Meaning::of(&error), Meaning::Broken);
        let said = sentence(&error, "services", "https://a");
        assert!(
            said.contains("connection reset; trying again until it works"),
            "{said}"
        );
    }
}
