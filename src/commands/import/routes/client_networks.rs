//! Divides clients with one name by their addresses, for routes with `client`: the longest prefix wins.

use ipnet::IpNet;

use super::class_result::ClassResult;
use crate::commands::import::addresses::AddressSet;

/// All networks of clients that rules test. No rule tells apart the addresses of a network that are in no inner one.
pub(super) struct ClientNetworks {
    /// Outer ones before inner ones.
    all: Vec<ClientNetwork>,
    /// Addresses in none of them.
    outside: AddressSet,
}

struct ClientNetwork {
    network: IpNet,
    /// The number of the next outer network.
    parent: Option<usize>,
    /// Addresses in no inner network.
    rest: AddressSet,
}

/// Clients of a class that one route matches.
pub(super) struct ClientPart {
    /// Empty: all that no other part matches.
    pub(super) networks: Vec<IpNet>,
    pub(super) clients: AddressSet,
    /// Clients of the part that do not go there are rejected; `None`: all are.
    pub(super) upstream: Option<String>,
}

impl ClientPart {
    fn of_all(class: &ClassResult) -> Self {
        Self { networks: Vec::new(), clients: AddressSet::all(), upstream: class.largest().map(str::to_owned) }
    }

    /// Adds a network to those of its upstream.
    fn add(all: &mut Vec<Self>, network: IpNet, clients: &AddressSet, upstream: Option<&str>) {
        let is_same = |part: &&mut Self| !part.networks.is_empty() && part.upstream.as_deref() == upstream;
        if let Some(part) = all.iter_mut().find(is_same) {
            part.networks.push(network);
            part.clients = part.clients.or(clients);
        } else {
            let upstream = upstream.map(str::to_owned);
            all.push(Self { networks: vec![network], clients: clients.clone(), upstream });
        }
    }
}

/// The upstreams of a network, for each class.
type Upstreams<'r> = Vec<Option<&'r str>>;

impl ClientNetworks {
    pub(super) fn new(mentioned: &[IpNet]) -> Self {
        let mut sorted = mentioned.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut parents: Vec<Option<usize>> = Vec::new();
        for (number, network) in sorted.iter().enumerate() {
            let mut parent = number.checked_sub(1);
            while let Some(outer) = parent.filter(|outer| !sorted[*outer].contains(network)) {
                parent = parents[outer];
            }
            parents.push(parent);
        }
        let rests = rests(&sorted, &parents);
        let all = sorted.into_iter().zip(parents).zip(rests.inside);
        let all = all.map(|((network, parent), rest)| ClientNetwork { network, parent, rest }).collect();
        Self { all, outside: rests.outside }
    }

    /// Of each class. If there are two, clients of the second match the routes of the first, too, unless they have one
    /// that is as specific.
    pub(super) fn divide(&self, classes: &[&ClassResult]) -> Vec<Vec<ClientPart>> {
        if classes.iter().all(|class| class.shares.len() <= 1) {
            return classes.iter().map(|class| vec![ClientPart::of_all(class)]).collect();
        }
        let others: Upstreams<'_> =
            classes.iter().map(|class| class.upstream_of(&self.outside).or_else(|| class.largest())).collect();
        let mut upstreams: Vec<Upstreams<'_>> = Vec::with_capacity(self.all.len());
        // Networks with other upstreams than the next outer one.
        let mut kept: Vec<usize> = Vec::new();
        for (number, ClientNetwork { parent, rest, .. }) in self.all.iter().enumerate() {
            let outer = parent.map_or(&others, |parent| &upstreams[parent]);
            // Clients that are rejected match the outer route, and are rejected there.
            let own = classes.iter().zip(outer).map(|(class, outer)| class.upstream_of(rest).or(*outer));
            let own: Upstreams<'_> = own.collect();
            if own != *outer {
                kept.push(number);
            }
            upstreams.push(own);
        }
        let networks: Vec<IpNet> = kept.iter().map(|number| self.all[*number].network).collect();
        let Rests { inside, outside } = rests(&networks, &self.kept_parents(&kept));
        let of_class = |index: usize| {
            let is_needed = |clients: &AddressSet| index == 0 || !classes[0].is_same_within(classes[index], clients);
            let mut parts = Vec::new();
            if is_needed(&outside) {
                let upstream = others[index].map(str::to_owned);
                parts.push(ClientPart { networks: Vec::new(), clients: outside.clone(), upstream });
            }
            let kept = kept.iter().zip(&networks).zip(&inside).filter(|(_, rest)| is_needed(rest));
            for ((number, network), rest) in kept {
                ClientPart::add(&mut parts, *network, rest, upstreams[*number][index]);
            }
            parts
        };
        (0..classes.len()).map(of_class).collect()
    }

    /// By the position of each network among those kept.
    fn kept_parents(&self, kept: &[usize]) -> Vec<Option<usize>> {
        let parent = |number: &usize| {
            let outer = std::iter::successors(self.all[*number].parent, |number| self.all[*number].parent);
            outer.into_iter().find_map(|number| kept.binary_search(&number).ok())
        };
        kept.iter().map(parent).collect()
    }
}

struct Rests {
    inside: Vec<AddressSet>,
    outside: AddressSet,
}

/// The addresses of each network that are in no inner one, and those in no network.
fn rests(networks: &[IpNet], parents: &[Option<usize>]) -> Rests {
    let mut inner: Vec<Vec<IpNet>> = vec![Vec::new(); networks.len()];
    let mut outermost = Vec::new();
    for (network, parent) in networks.iter().zip(parents) {
        parent.map_or(&mut outermost, |parent| &mut inner[parent]).push(*network);
    }
    let rest = |(network, inner): (&IpNet, &Vec<IpNet>)| AddressSet::of(&[*network]).minus(&AddressSet::of(inner));
    Rests { inside: networks.iter().zip(&inner).map(rest).collect(), outside: AddressSet::of(&outermost).not() }
}
