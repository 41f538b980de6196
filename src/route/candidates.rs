//! The routes of one name, found by their other matchers.
//!
//! Routes with matchers of the same shape (the same TLV numbers, and networks with prefixes of the same length) are in one
//! trie of hash maps, so a lookup costs a few hashes per shape (tuple space search), independent of the number of routes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::client::{Client, Matchers};

#[derive(Debug)]
pub(super) struct Candidates<T> {
    /// The most specific first; of equal ones, that with the lowest TLV numbers.
    shapes: Vec<(Shape, Node<T>)>,
}

impl<T> Default for Candidates<T> {
    fn default() -> Self {
        Self { shapes: Vec::new() }
    }
}

/// What the routes of a trie match on; each step is a level of the trie.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    specificity: Specificity,
    steps: Box<[Step]>,
}

impl Shape {
    /// Where it stands among the others.
    fn rank(&self) -> (Reverse<Specificity>, &[Step]) {
        (Reverse(self.specificity), &self.steps)
    }
}

/// Compared before listeners and ALPN: the number of TLVs, then the length of the destination's prefix, then that of the
/// client's. No condition is less than any prefix.
type Specificity = (usize, Option<u8>, Option<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Tlv(u8),
    Destination(Prefix),
    Client(Prefix),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    is_ipv4: bool,
    length: u8,
}

#[derive(Debug)]
enum Node<T> {
    /// By the value of a TLV, or the network's address.
    Inner(HashMap<Box<[u8]>, Node<T>>),
    /// The most specific first.
    Leaves(Vec<Leaf<T>>),
}

/// A route, or one of the combinations of its networks.
#[derive(Debug)]
struct Leaf<T> {
    matchers: Arc<Matchers>,
    destination: Option<IpNet>,
    client: Option<IpNet>,
    target: T,
}

impl<T> Leaf<T> {
    /// Compared among routes of equal [`Specificity`]: listeners decide before ALPN.
    fn rank(&self) -> (bool, bool) {
        (self.matchers.listeners.is_some(), self.matchers.alpn.is_some())
    }

    fn shape(&self) -> Shape {
        let prefix = |network: IpNet| Prefix { is_ipv4: matches!(network, IpNet::V4(_)), length: network.prefix_len() };
        let tlvs = self.matchers.proxy_tlvs.iter().map(|(number, _)| Step::Tlv(*number));
        let destination = self.destination.map(|network| Step::Destination(prefix(network)));
        let client = self.client.map(|network| Step::Client(prefix(network)));
        let length = |network: IpNet| network.prefix_len();
        Shape {
            specificity: (self.matchers.proxy_tlvs.len(), self.destination.map(length), self.client.map(length)),
            steps: tlvs.chain(destination).chain(client).collect(),
        }
    }

    /// A key for each step of its shape.
    fn keys(&self) -> Vec<Box<[u8]>> {
        let tlvs = self.matchers.proxy_tlvs.iter().map(|(_, value)| value.clone());
        let networks = [self.destination, self.client].into_iter().flatten();
        tlvs.chain(networks.map(|network| with_octets(network.network(), <[u8]>::to_vec).into())).collect()
    }

    /// Whether a client could match both, and neither is more specific. Both have the same [`Specificity`].
    fn conflicts_with(&self, other: &Self) -> bool {
        // Networks with prefixes of the same length are equal or apart. A client can offer any set of protocols.
        self.rank() == other.rank()
            && self.destination == other.destination
            && self.client == other.client
            && self.matchers.tlvs_can_meet(&other.matchers)
            && self.matchers.listeners_can_meet(&other.matchers)
    }
}

impl<T: Clone> Leaf<T> {
    /// Fails with the target of one of these that conflicts with it.
    fn compare(&self, others: &[Self]) -> Result<(), T> {
        others.iter().find(|other| other.conflicts_with(self)).map_or(Ok(()), |other| Err(other.target.clone()))
    }
}

impl<T: Clone> Candidates<T> {
    /// Inserts a route with these matchers; an error is the target of a route that conflicts with it.
    pub(super) fn insert(&mut self, matchers: &Arc<Matchers>, target: &T) -> Result<(), T> {
        let or_none = |networks: &Option<Box<[IpNet]>>| match networks {
            None => vec![None],
            Some(networks) => networks.iter().copied().map(Some).collect(),
        };
        let clients = or_none(&matchers.clients);
        for destination in or_none(&matchers.destinations) {
            for client in clients.iter().copied() {
                let (matchers, target) = (Arc::clone(matchers), target.clone());
                self.insert_leaf(Leaf { matchers, destination, client, target })?;
            }
        }
        Ok(())
    }

    fn insert_leaf(&mut self, leaf: Leaf<T>) -> Result<(), T> {
        let shape = leaf.shape();
        // In another trie, TLVs with other numbers do not tell clients apart.
        let others = self.shapes.iter().filter(|(other, _)| other.specificity == shape.specificity && *other != shape);
        for (_, other) in others {
            other.compare(&leaf)?;
        }
        let known = self.shapes.iter().position(|(other, _)| *other == shape);
        let index = known.unwrap_or_else(|| {
            let index = self.shapes.partition_point(|(other, _)| other.rank() < shape.rank());
            let root = if shape.steps.is_empty() { Node::Leaves(Vec::new()) } else { Node::Inner(HashMap::new()) };
            // Most names have one route.
            self.shapes.reserve_exact(1);
            self.shapes.insert(index, (shape, root));
            index
        });
        let keys = leaf.keys();
        self.shapes[index].1.insert(&keys, leaf)
    }
}

impl<T> Candidates<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// The most specific route that matches the client.
    pub(super) fn find(&self, client: &Client<'_>) -> Option<&T> {
        let mut best: Option<(Specificity, &Leaf<T>)> = None;
        for (shape, node) in &self.shapes {
            if best.is_some_and(|(specificity, _)| specificity > shape.specificity) {
                break;
            }
            let mut leaf = best.map(|(_, leaf)| leaf);
            node.find(&shape.steps, client, &mut leaf);
            best = leaf.map(|leaf| (shape.specificity, leaf));
        }
        best.map(|(_, leaf)| &leaf.target)
    }
}

impl<T: Clone> Node<T> {
    fn insert(&mut self, keys: &[Box<[u8]>], leaf: Leaf<T>) -> Result<(), T> {
        match self {
            Self::Inner(nodes) => {
                // There are as many keys as levels.
                let Some((key, rest)) = keys.split_first() else { return Ok(()) };
                let is_last = rest.is_empty();
                let empty = || if is_last { Self::Leaves(Vec::new()) } else { Self::Inner(HashMap::new()) };
                nodes.entry(key.clone()).or_insert_with(empty).insert(rest, leaf)
            }
            Self::Leaves(leaves) => {
                leaf.compare(leaves)?;
                let index = leaves.partition_point(|other| other.rank() >= leaf.rank());
                leaves.reserve_exact(1);
                leaves.insert(index, leaf);
                Ok(())
            }
        }
    }

    /// Fails with the target of a route that conflicts with the leaf.
    fn compare(&self, leaf: &Leaf<T>) -> Result<(), T> {
        match self {
            Self::Inner(nodes) => nodes.values().try_for_each(|node| node.compare(leaf)),
            Self::Leaves(leaves) => leaf.compare(leaves),
        }
    }
}

impl<T> Node<T> {
    /// Replaces `best` by a better leaf below this node. Of several TLVs with one number, the first is preferred.
    fn find<'n>(&'n self, steps: &[Step], client: &Client<'_>, best: &mut Option<&'n Leaf<T>>) {
        match self {
            Self::Inner(nodes) => {
                let Some((step, rest)) = steps.split_first() else { return };
                let mut descend = |key: &[u8]| {
                    if let Some(node) = nodes.get(key) {
                        node.find(rest, client, best);
                    }
                };
                match step {
                    Step::Tlv(number) => {
                        let values = || client.arrival.tlvs.of(*number);
                        // A value that is repeated is followed once, however long the header is.
                        let is_new =
                            |(index, value): &(usize, &[u8])| !values().take(*index).any(|other| other == *value);
                        values().enumerate().filter(is_new).for_each(|(_, value)| descend(value));
                    }
                    Step::Destination(prefix) => {
                        if let Some(network) = prefix.network(client.arrival.destination) {
                            with_octets(network, descend);
                        }
                    }
                    Step::Client(prefix) => {
                        if let Some(network) = prefix.network(client.arrival.client) {
                            with_octets(network, descend);
                        }
                    }
                }
            }
            Self::Leaves(leaves) => {
                let holds = |leaf: &&Leaf<T>| {
                    leaf.matchers.listener_holds(client.arrival.listener) && leaf.matchers.alpn_holds(client.alpn)
                };
                if let Some(leaf) = leaves.iter().find(holds)
                    && best.is_none_or(|best| leaf.rank() > best.rank())
                {
                    *best = Some(leaf);
                }
            }
        }
    }
}

impl Prefix {
    /// The address of the network that contains this one; `None` for the other family.
    fn network(self, address: Option<IpAddr>) -> Option<IpAddr> {
        let address = address.filter(|address| address.is_ipv4() == self.is_ipv4)?;
        IpNet::new(address, self.length).ok().map(|network| network.network())
    }
}

/// Calls `use_it` with the bytes of an address.
fn with_octets<T>(address: IpAddr, use_it: impl FnOnce(&[u8]) -> T) -> T {
    match address {
        IpAddr::V4(address) => use_it(&address.octets()),
        IpAddr::V6(address) => use_it(&address.octets()),
    }
}
