//! The files that values of a configuration name.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use super::text::Written as _;
use super::values::Network;
use crate::connection::networks::NetworkSet;
use crate::process::inputs::Inputs;
use crate::upstream::health::{Authorities, CaFile};

/// The files that a configuration names: many routes may name the same.
pub(super) struct Files<'f> {
    /// Relative paths start here.
    pub(super) directory: &'f Path,
    inputs: &'f mut Inputs,
    /// CAs that have been read.
    authorities: HashSet<CaFile>,
    networks: HashMap<PathBuf, Arc<NetworkSet>>,
}

impl<'f> Files<'f> {
    pub(super) fn new(directory: &'f Path, inputs: &'f mut Inputs) -> Self {
        Self { directory, inputs, authorities: HashSet::new(), networks: HashMap::new() }
    }

    pub(super) fn path(&self, file: &Path) -> PathBuf {
        self.directory.join(file)
    }

    /// The same from any current directory, as digests of routes have to be.
    pub(super) fn absolute_path(&self, file: &Path) -> PathBuf {
        let path = self.path(file);
        // There is one unless the current directory is gone.
        std::path::absolute(&path).unwrap_or(path)
    }

    pub(super) fn check_authorities(&mut self, from: &CaFile) -> Result<(), String> {
        if !self.authorities.contains(from) {
            Authorities::read(from)?;
            self.authorities.insert(from.clone());
        }
        Ok(())
    }

    /// The networks in a file.
    pub(super) fn networks(&mut self, file: &Path) -> Result<Arc<NetworkSet>, String> {
        let path = self.path(file);
        if let Some(networks) = self.networks.get(&path) {
            return Ok(Arc::clone(networks));
        }
        let content = self.inputs.read(&path).map_err(|error| format!("{}: {}", path.display(), error.reason))?;
        let networks =
            parse_networks(&content).map_err(|(line, message)| format!("{}:{line}: {message}", path.display()))?;
        let networks = Arc::new(NetworkSet::of_file(&path, networks));
        self.networks.insert(path, Arc::clone(&networks));
        Ok(networks)
    }

    /// How many files with networks were read.
    pub(super) fn network_files(&self) -> usize {
        self.networks.len()
    }
}

/// Characters of a wrong line that are shown: it may be of a file that is something else.
const MAX_SHOWN: usize = 80;

/// One network or address per line; `#` starts a comment. An error is of the line with this number.
pub(crate) fn parse_networks(content: &[u8]) -> Result<Vec<IpNet>, (usize, String)> {
    let content = content.strip_prefix("\u{feff}".as_bytes()).unwrap_or(content);
    let mut networks = Vec::new();
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let text = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if text.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(text);
        let Network(network) = Network::parse(&text).map_err(|message| {
            let shown: String = text.chars().take(MAX_SHOWN).collect();
            (index + 1, format!("`{shown}`: {message}"))
        })?;
        networks.push(network);
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_networks_has_comments_and_any_ends_of_lines() {
        let text = "\u{feff}# office\r\n10.0.0.0/8\r\n\r\n  2001:db8::/32 # guests\n192.0.2.1\n#\n::ffff:192.0.2.2";
        let networks: Vec<String> = parse_networks(text.as_bytes()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32", "192.0.2.2/32"]);
        assert_eq!(parse_networks(b"# caf\xe9\n"), Ok(Vec::new()), "a comment of any encoding");
        for (text, line, reason) in [
            (
                "10.0.0.0/8\n10.0.0.1/8\n",
                2,
                "`10.0.0.1/8`: host bits are set (did you mean 10.0.0.0/8?); expected a network",
            ),
            ("\n\n10.0.0.0/8, 10.1.0.0/16", 3, "`10.0.0.0/8, 10.1.0.0/16`: expected a network such as 192.0.2.0/24"),
            (&"x".repeat(1 << 20), 1, &format!("`{}`: expected a network", "x".repeat(MAX_SHOWN))),
        ] {
            let (at, message) = parse_networks(text.as_bytes()).unwrap_err();
            assert!(at == line && message.starts_with(reason), "{at}: {message}");
        }
    }
}
