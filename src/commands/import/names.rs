//! What names may look like: exact ones, all below one, and looser comparisons, which a route may not be able to make.

use crate::name::NamePattern;

use super::values::{below, exact};

/// A part of all clients that no rule divides further by name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Region<'a> {
    /// The name matches this, and nothing more specific that any rule has.
    Named(&'a NamePattern),
    /// Any other name.
    Other,
    /// No name is sent.
    Nameless,
}

/// Whether something holds for the clients of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    /// For some of them; a route has to do with this answer for all.
    Partly(bool),
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// A comparison of names, all in small letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Exact(String),
    /// Any number of labels before this one.
    Below(String),
    /// One label before it.
    OneBelow(String),
    Ends(String),
    Begins(String),
    Contains(String),
    /// Between dots, or at an end.
    Labels(String),
    /// Where a dot stands, any character may.
    Loose(String),
}

impl Form {
    /// As HAProxy calls its comparisons.
    pub(super) fn of_method(method: &str, text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let is_part = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let form = match (method, text.strip_prefix('.')) {
            ("str", _) => Self::exact(&text)?,
            ("end", Some(suffix)) => Self::below(suffix)?,
            ("end" | "beg" | "sub" | "dom", _) if !is_part(&text) => {
                return Err("it is no part of a name".into());
            }
            ("end", None) => Self::Ends(text),
            ("beg", _) => Self::Begins(text),
            ("sub", _) => Self::Contains(text),
            ("dom", _) => Self::Labels(text.trim_matches('.').into()),
            _ => return Err(format!("the comparison `{method}` has no counterpart")),
        };
        Ok(form)
    }

    pub(super) fn exact(text: &str) -> Result<Self, String> {
        exact(text).map(|name| match name {
            NamePattern::Exact(text) | NamePattern::Suffix(text) => Self::Exact(text.to_string()),
        })
    }

    pub(super) fn below(text: &str) -> Result<Self, String> {
        below(text).map(|name| match name {
            NamePattern::Exact(text) | NamePattern::Suffix(text) => Self::Below(text.to_string()),
        })
    }

    /// If a route can say just the same.
    pub(super) fn pattern(&self) -> Option<NamePattern> {
        match self {
            Self::Exact(text) => exact(text).ok(),
            Self::Below(text) => below(text).ok(),
            _ => None,
        }
    }

    /// The names that are worth routes of their own.
    pub(super) fn patterns(&self) -> Vec<NamePattern> {
        let text = match self {
            Self::Exact(_) | Self::Below(_) => return self.pattern().into_iter().collect(),
            Self::OneBelow(text) => return below(text).into_iter().collect(),
            Self::Begins(text) | Self::Loose(text) => return exact(text).into_iter().collect(),
            Self::Ends(text) | Self::Contains(text) | Self::Labels(text) => text.trim_matches('.'),
        };
        if text.contains('.') { exact(text).into_iter().chain(below(text)).collect() } else { Vec::new() }
    }

    /// The clients for whom a route cannot tell.
    pub(super) fn doubt(&self) -> String {
        match self {
            Self::Exact(text) | Self::Below(text) => format!("`{text}`"),
            Self::OneBelow(text) => format!("names with more than one label before `.{text}`"),
            Self::Ends(text) => format!("names that end in `{text}` within a label, such as `x{text}`"),
            Self::Begins(text) => format!("other names that begin with `{text}`"),
            Self::Contains(text) => format!("other names that contain `{text}`"),
            Self::Labels(text) => format!("names that have `{text}` in the middle"),
            Self::Loose(text) => format!("names that have another character in place of a dot in `{text}`"),
        }
    }

    pub(super) fn holds_for(&self, region: Region<'_>) -> Truth {
        match region {
            Region::Nameless => Truth::No,
            Region::Named(NamePattern::Exact(name)) => self.is_like(name).into(),
            Region::Named(NamePattern::Suffix(parent)) => self.holds_below(parent),
            Region::Other => match self {
                // Their names are regions of their own.
                Self::Exact(_) | Self::Below(_) | Self::OneBelow(_) => Truth::No,
                _ => Truth::Partly(false),
            },
        }
    }

    fn is_like(&self, name: &str) -> bool {
        let before = |suffix: &str| name.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
        match self {
            Self::Exact(text) => name == text,
            Self::Below(text) => before(text).is_some(),
            Self::OneBelow(text) => before(text).is_some_and(|rest| !rest.contains('.')),
            Self::Ends(text) => name.ends_with(text.as_str()),
            Self::Begins(text) => name.starts_with(text.as_str()),
            Self::Contains(text) => name.contains(text.as_str()),
            Self::Labels(text) => format!(".{name}.").contains(&format!(".{text}.")),
            Self::Loose(text) => {
                let alike = |(one, other): (u8, u8)| one == other || other == b'.';
                name.len() == text.len() && name.bytes().zip(text.bytes()).all(alike)
            }
        }
    }

    /// For names below one that are in no smaller region.
    fn holds_below(&self, parent: &str) -> Truth {
        let rest = format!(".{parent}");
        match self {
            Self::Below(text) => (parent == text || rest.ends_with(&format!(".{text}"))).into(),
            Self::OneBelow(text) if parent == text => Truth::Partly(true),
            Self::Exact(_) | Self::OneBelow(_) => Truth::No,
            Self::Ends(text) if !rest.ends_with(text.as_str()) && !text.ends_with(&rest) => Truth::No,
            Self::Ends(text) if rest.ends_with(text.as_str()) => Truth::Yes,
            Self::Contains(text) if rest.contains(text.as_str()) => Truth::Yes,
            Self::Labels(text) if format!("{rest}.").contains(&format!(".{text}.")) => Truth::Yes,
            Self::Ends(_) | Self::Begins(_) | Self::Contains(_) | Self::Labels(_) | Self::Loose(_) => {
                Truth::Partly(false)
            }
        }
    }
}

/// The nearest wildcard first that covers a name, without itself.
pub(super) fn wider(pattern: &NamePattern) -> impl Iterator<Item = NamePattern> {
    let (NamePattern::Exact(text) | NamePattern::Suffix(text)) = pattern;
    let parents = std::iter::successors(text.split_once('.'), |(_, parent)| parent.split_once('.'));
    parents.map(|(_, parent)| NamePattern::Suffix(parent.into()))
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "{text}"),
            Self::Below(text) => write!(f, "*.{text}"),
            Self::OneBelow(text) => write!(f, "*.{text} of one label"),
            Self::Ends(text) => write!(f, "what ends in {text}"),
            Self::Begins(text) => write!(f, "what begins with {text}"),
            Self::Contains(text) => write!(f, "what contains {text}"),
            Self::Labels(text) => write!(f, "what has {text} between dots"),
            Self::Loose(text) => write!(f, "{text} with any character in place of a dot"),
        }
    }
}
