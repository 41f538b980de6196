//! Comparisons of server names: those that `sni` patterns can express, and those that they cannot.

use crate::name::NamePattern;

use super::values::{exact_pattern, wildcard_pattern};

/// Clients whose names no rule tells apart, as far as patterns go.
#[derive(Clone, Copy, Debug)]
pub(super) enum NameClass<'a> {
    /// Names for which this is the most specific pattern of all rules.
    Pattern(&'a NamePattern),
    /// Names that match no pattern.
    Other,
    NoSni,
}

/// Whether a comparison holds for the clients of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    /// For some of them, but a route has to treat them alike.
    Partly {
        assumed: bool,
    },
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// In lower case, as snigate compares names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum NameMatch {
    Exact(String),
    /// Any number of labels before this name.
    Below(String),
    /// One label before this name.
    OneLabelBelow(String),
    EndsWith(String),
    StartsWith(String),
    Contains(String),
    /// Whole labels, anywhere in the name.
    ContainsLabels(String),
    /// A regular expression with unescaped dots.
    AnyCharacterForDot(String),
}

impl NameMatch {
    /// By the name of HAProxy's matching method.
    pub(super) fn by_method(method: &str, text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let is_part_of_name = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let one = match (method, text.strip_prefix('.')) {
            ("str", _) => Self::exact(&text)?,
            ("end", Some(suffix)) => Self::below(suffix)?,
            ("end" | "beg" | "sub" | "dom", _) if !is_part_of_name(&text) => {
                return Err("it cannot be part of a hostname".into());
            }
            ("end", None) => Self::EndsWith(text),
            ("beg", _) => Self::StartsWith(text),
            ("sub", _) => Self::Contains(text),
            ("dom", _) => Self::ContainsLabels(text.trim_matches('.').into()),
            _ => return Err(format!("names cannot be matched with `-m {method}`")),
        };
        Ok(one)
    }

    pub(super) fn exact(text: &str) -> Result<Self, String> {
        exact_pattern(text).map(|name| match name {
            NamePattern::Exact(text) | NamePattern::Suffix(text) => Self::Exact(text.to_string()),
        })
    }

    pub(super) fn below(text: &str) -> Result<Self, String> {
        wildcard_pattern(text).map(|name| match name {
            NamePattern::Exact(text) | NamePattern::Suffix(text) => Self::Below(text.to_string()),
        })
    }

    /// The pattern that matches the same names, if there is one.
    pub(super) fn as_pattern(&self) -> Option<NamePattern> {
        match self {
            Self::Exact(text) => exact_pattern(text).ok(),
            Self::Below(text) => wildcard_pattern(text).ok(),
            _ => None,
        }
    }

    /// Patterns for which it is worth having a route, as the comparison likely means these names.
    pub(super) fn nearby_patterns(&self) -> Vec<NamePattern> {
        let text = match self {
            Self::Exact(_) | Self::Below(_) => return self.as_pattern().into_iter().collect(),
            Self::OneLabelBelow(text) => return wildcard_pattern(text).into_iter().collect(),
            Self::StartsWith(text) | Self::AnyCharacterForDot(text) => {
                return exact_pattern(text).into_iter().collect();
            }
            Self::EndsWith(text) | Self::Contains(text) | Self::ContainsLabels(text) => text.trim_matches('.'),
        };
        if text.contains('.') {
            exact_pattern(text).into_iter().chain(wildcard_pattern(text)).collect()
        } else {
            Vec::new()
        }
    }

    /// The names for which a route cannot tell whether the comparison holds.
    pub(super) fn undecided_names(&self) -> String {
        match self {
            Self::Exact(text) | Self::Below(text) => format!("`{text}`"),
            Self::OneLabelBelow(text) => format!("names with more than one label before `.{text}`"),
            Self::EndsWith(text) => format!("names in which `{text}` ends a longer label, such as `x{text}`"),
            Self::StartsWith(text) => format!("other names that start with `{text}`"),
            Self::Contains(text) => format!("other names that contain `{text}`"),
            Self::ContainsLabels(text) => format!("names with `{text}` in the middle"),
            Self::AnyCharacterForDot(text) => format!("names with another character where `{text}` has a dot"),
        }
    }

    pub(super) fn matches(&self, class: NameClass<'_>) -> Truth {
        match class {
            NameClass::NoSni => Truth::No,
            NameClass::Pattern(NamePattern::Exact(name)) => self.matches_name(name).into(),
            NameClass::Pattern(NamePattern::Suffix(parent)) => self.matches_names_below(parent),
            NameClass::Other => match self {
                // Names that these match have patterns of their own.
                Self::Exact(_) | Self::Below(_) | Self::OneLabelBelow(_) => Truth::No,
                _ => Truth::Partly { assumed: false },
            },
        }
    }

    fn matches_name(&self, name: &str) -> bool {
        let before = |suffix: &str| name.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
        match self {
            Self::Exact(text) => name == text,
            Self::Below(text) => before(text).is_some(),
            Self::OneLabelBelow(text) => before(text).is_some_and(|rest| !rest.contains('.')),
            Self::EndsWith(text) => name.ends_with(text.as_str()),
            Self::StartsWith(text) => name.starts_with(text.as_str()),
            Self::Contains(text) => name.contains(text.as_str()),
            Self::ContainsLabels(text) => format!(".{name}.").contains(&format!(".{text}.")),
            Self::AnyCharacterForDot(text) => {
                let fits = |(given, wanted): (u8, u8)| given == wanted || wanted == b'.';
                name.len() == text.len() && name.bytes().zip(text.bytes()).all(fits)
            }
        }
    }

    /// For the names below `parent` that have no more specific pattern.
    fn matches_names_below(&self, parent: &str) -> Truth {
        let rest = format!(".{parent}");
        match self {
            Self::Below(text) => (parent == text || rest.ends_with(&format!(".{text}"))).into(),
            Self::OneLabelBelow(text) if parent == text => Truth::Partly { assumed: true },
            Self::Exact(_) | Self::OneLabelBelow(_) => Truth::No,
            Self::EndsWith(text) if !rest.ends_with(text.as_str()) && !text.ends_with(&rest) => Truth::No,
            Self::EndsWith(text) if rest.ends_with(text.as_str()) => Truth::Yes,
            Self::Contains(text) if rest.contains(text.as_str()) => Truth::Yes,
            Self::ContainsLabels(text) if format!("{rest}.").contains(&format!(".{text}.")) => Truth::Yes,
            Self::EndsWith(_)
            | Self::StartsWith(_)
            | Self::Contains(_)
            | Self::ContainsLabels(_)
            | Self::AnyCharacterForDot(_) => Truth::Partly { assumed: false },
        }
    }
}

/// The wildcards that cover a pattern, the nearest first.
pub(super) fn wildcards_above(pattern: &NamePattern) -> impl Iterator<Item = NamePattern> {
    let (NamePattern::Exact(text) | NamePattern::Suffix(text)) = pattern;
    let parents = std::iter::successors(text.split_once('.'), |(_, parent)| parent.split_once('.'));
    parents.map(|(_, parent)| NamePattern::Suffix(parent.into()))
}

impl std::fmt::Display for NameMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "{text}"),
            Self::Below(text) => write!(f, "*.{text}"),
            Self::OneLabelBelow(text) => write!(f, "names with one label before .{text}"),
            Self::EndsWith(text) => write!(f, "names that end in {text}"),
            Self::StartsWith(text) => write!(f, "names that start with {text}"),
            Self::Contains(text) => write!(f, "names that contain {text}"),
            Self::ContainsLabels(text) => write!(f, "names that have {text} between dots"),
            Self::AnyCharacterForDot(text) => write!(f, "{text} with any character in place of a dot"),
        }
    }
}
