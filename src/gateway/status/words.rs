//! Conditions in words.

use serde_json::Value;

use crate::gateway::translate::INVALID_ANNOTATIONS;

/// What a condition of ours says, if it is not as it should be.
pub(crate) fn problem(condition: &Value) -> Option<String> {
    let text = |key: &str| condition[key].as_str().unwrap_or_default();
    let is_wrong = match text("type") {
        // A message says which part is left out.
        "Accepted" | "Programmed" | "ResolvedRefs" => text("status") != "True" || !text("message").is_empty(),
        "Conflicted" | INVALID_ANNOTATIONS => text("status") == "True",
        _ => false,
    };
    is_wrong.then(|| format!("{} {} ({}): {}", text("type"), text("status"), text("reason"), text("message")))
}
