//! Links within the repository.

use std::path::Path;

use crate::support::pages::{all, page, prose};

/// Where the headings of a page can be linked to.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let Some(title) = line.strip_prefix('#') else { continue };
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
        let anchor: String = kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect();
        assert!(!anchors.contains(&anchor), "two headings {title}");
        anchors.push(anchor);
    }
    anchors
}

/// What is linked to, without what is in code.
fn links(text: &str) -> Vec<String> {
    let targets = prose(text).flat_map(|(_, line)| line.split("](").skip(1));
    targets.filter_map(|rest| rest.split_once(')')).map(|(link, _)| link.to_owned()).collect()
}

#[test]
fn no_link_is_dead() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for path in all() {
        let text = page(&path);
        let here = root.join(&path);
        for link in links(&text).into_iter().filter(|link| !link.starts_with("https://")) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { here.clone() } else { here.parent().unwrap().join(file) };
            assert!(target.exists(), "{path}: {link} is dead");
            if !heading.is_empty() {
                let found = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(found.iter().any(|anchor| anchor == heading), "{path}: {link}: none of {found:?}");
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn lists_of_contents_have_every_section() {
    let mut count = 0;
    for path in all() {
        let text = page(&path);
        let contents = links(text.split("\n## ").next().unwrap().split_once("\n- [").map_or("", |(_, list)| list));
        if !contents.iter().any(|link| link.starts_with('#')) {
            continue;
        }
        let sections = prose(&text).map(|(_, line)| line).filter(|line| line.starts_with("## "));
        for section in anchors(&sections.collect::<Vec<_>>().join("\n")) {
            assert!(contents.contains(&format!("#{section}")), "{path}: {section} is not in the list of contents");
        }
        count += 1;
    }
    assert!(count > 8, "{count}");
}

#[test]
fn the_readme_leads_to_every_page() {
    let readme = page("README.md");
    for path in all().into_iter().filter(|path| path.starts_with("docs/")) {
        assert!(readme.contains(&format!("({path})")), "README.md does not link {path}");
    }
}
