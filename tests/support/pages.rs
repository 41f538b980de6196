//! The pages that people read, and the blocks on them. A block that a test needs has a name in a comment above it:
//! `<!-- block: NAME -->`.

use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// The page, from the root of the repository.
    pub page: String,
    pub name: Option<String>,
    /// What stands behind the fence, such as `sh`.
    pub kind: String,
    /// Without the indentation of the list that it stands in.
    pub text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a page.
pub fn page(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All pages, from the root of the repository.
pub fn all() -> Vec<String> {
    let mut pages = Vec::new();
    let mut directories: Vec<PathBuf> =
        ["", "docs", "deploy", "fuzz", "tests", "tests/hellos"].map(|name| root().join(name)).into();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && directory.starts_with(root().join("deploy")) {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 20, "{pages:?}");
    pages
}

/// All Rust files below a directory of the repository.
pub fn sources(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The blocks of a page, in order.
pub fn blocks(path: &str) -> Vec<Block> {
    let text = page(path);
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    let mut before = "";
    while let Some(line) = lines.next() {
        let Some(kind) = line.trim_start().strip_prefix("```") else {
            before = line;
            continue;
        };
        let indentation = line.len() - line.trim_start().len();
        let inside = lines.by_ref().take_while(|line| line.trim_start() != "```");
        let text = inside.map(|line| format!("{}\n", line.get(indentation..).unwrap_or_default())).collect();
        let name = before.trim().strip_prefix("<!-- block: ").and_then(|rest| rest.strip_suffix(" -->"));
        blocks.push(Block { page: path.into(), name: name.map(Into::into), kind: kind.into(), text });
        before = "";
    }
    blocks
}

/// The text of the block with this name.
#[track_caller]
pub fn block(path: &str, name: &str) -> String {
    let mut found = blocks(path).into_iter().filter(|block| block.name.as_deref() == Some(name));
    let block = found.next().unwrap_or_else(|| panic!("{path} has no block {name}"));
    assert!(found.next().is_none(), "{path}: two blocks are called {name}");
    block.text
}

/// Configurations of snigate among the blocks of all pages.
pub fn configurations() -> Vec<Block> {
    let is_one = |block: &Block| block.kind == "yaml" && block.text.lines().any(|line| line == "routes:");
    let found: Vec<Block> = all().iter().flat_map(|page| blocks(page)).filter(is_one).collect();
    assert!(found.len() > 5, "{}", found.len());
    found
}

/// The lines of a text outside its blocks, with their numbers.
pub fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_block = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        !is_block && !is_fence
    })
}

/// What is in `backticks` on a page, outside its blocks.
pub fn code(path: &str) -> Vec<String> {
    let text = page(path);
    let lines: Vec<&str> = prose(&text).map(|(_, line)| line).collect();
    lines.join("\n").split('`').skip(1).step_by(2).map(|code| code.replace("\\|", "|").replace('\n', " ")).collect()
}

/// The rows of the table with this header, each as its cells.
#[track_caller]
pub fn table(path: &str, header: &str) -> Vec<Vec<String>> {
    let text = page(path);
    let mut rows = Vec::new();
    for part in text.split(&format!("\n{header}\n")).skip(1) {
        for line in part.lines().skip(1).take_while(|line| line.starts_with('|')) {
            let cells = line.trim_matches('|').replace("\\|", "\u{0}");
            rows.push(cells.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect());
        }
    }
    assert!(!rows.is_empty(), "{path} has no table {header}");
    rows
}
