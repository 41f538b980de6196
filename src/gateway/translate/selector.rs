//! Label selectors.

use std::collections::BTreeMap;

use crate::gateway::api::{Selector, SelectorRequirement};

/// Whether an object with these labels is selected. An operator that does not exist selects nothing.
pub(super) fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    let Selector { match_labels, match_expressions } = selector;
    let holds = |SelectorRequirement { key, operator, values }: &SelectorRequirement| {
        let value = labels.get(key);
        match &**operator {
            "In" => value.is_some_and(|value| values.contains(value)),
            "NotIn" => value.is_none_or(|value| !values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    match_labels.iter().all(|(key, value)| labels.get(key) == Some(value)) && match_expressions.iter().all(holds)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn all_requirements_must_hold() {
        let labels = [("team".to_owned(), "a".to_owned()), ("stage".to_owned(), "prod".to_owned())].into();
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "team", "operator": operator, "values": values}]});
        let cases: [(Value, bool); 12] = [
            (json!({}), true),
            (json!({"matchLabels": {"team": "a"}}), true),
            (json!({"matchLabels": {"team": "a", "stage": "test"}}), false),
            (json!({"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}), false),
            (expression("In", &["b", "a"]), true),
            (expression("In", &["b"]), false),
            (expression("NotIn", &["b"]), true),
            (expression("NotIn", &["a"]), false),
            (expression("Exists", &[]), true),
            (expression("DoesNotExist", &[]), false),
            (json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["a"]}]}), true),
            (expression("Gt", &["1"]), false),
        ];
        for (selector, expected) in cases {
            let parsed: Selector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&parsed, &labels), expected, "{selector}");
        }
    }
}
