//! Evaluates all rules of a frontend, and of the backends that it routes to, for one class of clients after another.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::name::NamePattern;
use ipnet::IpNet;

use super::class_result::{ClassResult, ClientShare};
use super::client_notes::{self, ClientNote};
use super::distinctions::Distinctions;
use super::rule_list::{Evaluation, RuleList};
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::client_class::{ArrivalClass, ClientClass};
use crate::commands::import::draft::{Action, Draft, Frontend, Rule};
use crate::commands::import::expression::Test;
use crate::commands::import::name_match::NameClass;
use crate::commands::import::name_set::NameSet;
use crate::commands::import::notes::{Location, Notes, Severity};
use crate::commands::import::upstream_draft::UpstreamDraft;

pub(super) struct Evaluator<'a> {
    frontend: &'a Frontend,
    draft: &'a Draft,
    phases: Vec<RuleList<'a>>,
    rules: RuleList<'a>,
    backends: HashMap<&'a str, BackendRules<'a>>,
    /// Clients that no phase rejects for every name.
    admitted: AddressSet,
    notes: Vec<ClientNote>,
}

/// Rules that a backend has itself.
struct BackendRules<'a> {
    upstream: &'a UpstreamDraft,
    phases: Vec<RuleList<'a>>,
    servers: RuleList<'a>,
}

/// What is found out about one class on the way through the rules.
#[derive(Default)]
struct Found {
    notes: Vec<(AddressSet, ClientNote)>,
    rejected_at: Option<Location>,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(frontend: &'a Frontend, draft: &'a Draft) -> Self {
        let mut backends = HashMap::new();
        for rule in &frontend.rules {
            let Action::RouteTo(key) = &rule.then else { continue };
            if let Some((key, upstream)) = draft.upstreams.get_key_value(key) {
                backends.entry(key.as_str()).or_insert_with(|| BackendRules {
                    upstream,
                    phases: phases(&upstream.phases),
                    servers: RuleList::new(&upstream.server_rules, Action::RouteTo(key.clone())),
                });
            }
        }
        Self {
            frontend,
            draft,
            phases: phases(&frontend.phases),
            rules: RuleList::new(&frontend.rules, Action::Reject),
            backends,
            admitted: AddressSet::none(),
            notes: Vec::new(),
        }
    }

    fn visit_tests(&self, visit: &mut impl FnMut(&Test)) {
        let frontend = self.frontend;
        frontend.phases.iter().flatten().chain(&frontend.rules).for_each(|rule| rule.when.visit_tests(visit));
        let mut seen = HashSet::new();
        for rule in &frontend.rules {
            let Action::RouteTo(key) = &rule.then else { continue };
            if let Some(upstream) = self.draft.upstreams.get(key).filter(|_| seen.insert(key)) {
                let rules = upstream.phases.iter().flatten().chain(&upstream.server_rules);
                rules.for_each(|rule| rule.when.visit_tests(visit));
            }
        }
    }

    /// All patterns that rules tell apart; those that choose an upstream first, in their order.
    pub(super) fn patterns(&self) -> Vec<NamePattern> {
        let mut seen = HashSet::new();
        let mut patterns = Vec::new();
        let mut add = |test: &Test| {
            if let Test::Names(names) = test {
                patterns.extend(NameSet::all_patterns(names).filter(|pattern| seen.insert(pattern.clone())));
            }
        };
        self.frontend.rules.iter().for_each(|rule| rule.when.visit_tests(&mut add));
        self.visit_tests(&mut add);
        patterns
    }

    /// How rules tell apart where clients with these names arrive.
    pub(super) fn distinctions(&self, names: &[NameClass<'_>]) -> Distinctions {
        let mut found = Distinctions::default();
        let accepts_tlvs = !self.frontend.accept_proxy.is_empty();
        self.visit_tests_for(names, None, &mut |test| {
            if accepts_tlvs || !matches!(test, Test::ProxyTlv(..)) {
                found.add(test);
            }
        });
        found.finish();
        found
    }

    /// The protocols of the first ALPN test; empty if there is none.
    pub(super) fn alpn_protocols(&self, names: &[NameClass<'_>], arrival: ArrivalClass<'_>) -> BTreeSet<String> {
        let mut first = None;
        self.visit_tests_for(names, Some(arrival), &mut |test| {
            if let Test::Alpn(protocols) = test {
                first.get_or_insert_with(|| protocols.clone());
            }
        });
        first.unwrap_or_default()
    }

    fn visit_tests_for(
        &self,
        names: &[NameClass<'_>],
        arrival: Option<ArrivalClass<'_>>,
        visit: &mut impl FnMut(&Test),
    ) {
        for name in names {
            let mut visit_rule = |rule: &Rule| rule.when.visit_tests_for(*name, arrival, visit);
            self.phases.iter().flat_map(|phase| phase.rules_for(*name)).for_each(&mut visit_rule);
            for rule in self.rules.rules_for(*name) {
                visit_rule(rule);
                let Action::RouteTo(key) = &rule.then else { continue };
                if let Some(BackendRules { phases, servers, .. }) = self.backends.get(key.as_str()) {
                    let rules = phases.iter().chain([servers]).flat_map(|rules| rules.rules_for(*name));
                    rules.for_each(&mut visit_rule);
                }
            }
        }
    }

    pub(super) fn mentioned_networks(&self) -> Vec<IpNet> {
        let mut mentioned = Vec::new();
        self.visit_tests(&mut |test| {
            if let Test::ClientAddress(from) = test {
                mentioned.extend(from.networks());
            }
        });
        mentioned
    }

    pub(super) fn admitted(&self) -> &AddressSet {
        &self.admitted
    }

    pub(super) fn evaluate(&mut self, class: ClientClass<'_>) -> ClassResult {
        let mut found = Found::default();
        let admitted = found.pass(&mut self.phases, class, AddressSet::all());
        self.admitted = self.admitted.or(&admitted);

        let chosen = self.rules.evaluate(class, &admitted);
        found.note_routing(&chosen);
        let mut shares = Vec::new();
        for (action, clients) in &chosen.clients_by_action {
            let Action::RouteTo(key) = action else { continue };
            let location = chosen.location(action).unwrap_or(&self.frontend.location);
            let clients = match self.backends.get_mut(key.as_str()) {
                Some(backend) => found.pass_backend(backend, class, clients.clone()),
                None => vec![(key.clone(), clients.clone())],
            };
            let share = |(upstream, clients)| ClientShare { upstream, clients, location: location.clone() };
            shares.extend(clients.into_iter().map(share));
        }
        shares.retain(|share| self.has_endpoints(share));

        let is_listed = matches!(class.name, NameClass::Pattern(pattern) if chosen.deciding_rules.iter().any(|rule| {
            rule.when.required_names().is_some_and(|names| names.contains(pattern))
        }));
        let rejected_at = found.rejected_at.unwrap_or_else(|| self.frontend.location.clone());
        let result = ClassResult::new(shares, rejected_at, is_listed);
        let admitted = result.admitted();
        // Rules that might reject more clients do not matter where all are rejected.
        self.notes.extend(found.notes.into_iter().filter_map(|(clients, note)| {
            let matters = note.severity != Severity::AdmitsMore || !clients.and(&admitted).is_empty();
            matters.then_some(note)
        }));
        result
    }

    fn has_endpoints(&mut self, share: &ClientShare) -> bool {
        let ClientShare { upstream: key, location, .. } = share;
        if self.draft.upstreams.get(key).is_some_and(|upstream| !upstream.endpoints.is_empty()) {
            return true;
        }
        let is_empty_in_source =
            self.backends.get(key.as_str()).is_some_and(|backend| backend.upstream.is_empty_in_source);
        let (severity, reason) = if is_empty_in_source {
            (Severity::Info, format!("`{key}` has no server, so its clients are rejected, as in the source"))
        } else {
            (
                Severity::RejectsOrReroutes,
                format!("no server of `{key}` could be translated, so its clients are rejected"),
            )
        };
        self.notes.push(ClientNote { severity, location: location.clone(), reason });
        false
    }

    pub(super) fn report(self, notes: &mut Notes) {
        for ClientNote { severity, location, reason } in self.notes {
            notes.add(severity, &location, reason);
        }
        let backends =
            self.backends.into_values().flat_map(|backend| backend.phases.into_iter().chain([backend.servers]));
        for rules in self.phases.into_iter().chain([self.rules]).chain(backends) {
            rules.report(notes);
        }
    }
}

fn phases(all: &[Vec<Rule>]) -> Vec<RuleList<'_>> {
    all.iter().map(|rules| RuleList::new(rules, Action::Accept)).collect()
}

impl Found {
    /// The clients that no phase rejects.
    fn pass(&mut self, phases: &mut [RuleList<'_>], class: ClientClass<'_>, clients: AddressSet) -> AddressSet {
        let mut admitted = clients;
        for phase in phases {
            let evaluation = phase.evaluate(class, &admitted);
            for uncertainty in &evaluation.uncertainties {
                self.notes.push((uncertainty.clients.clone(), client_notes::of_phase(uncertainty)));
            }
            admitted = AddressSet::none();
            for (action, clients) in &evaluation.clients_by_action {
                if *action == Action::Accept {
                    admitted.clone_from(clients);
                } else if self.rejected_at.is_none() {
                    self.rejected_at = evaluation.location(action).cloned();
                }
            }
        }
        admitted
    }

    /// The clients that a backend admits, by upstream: those of its `use-server` rules have their own.
    fn pass_backend(
        &mut self,
        backend: &mut BackendRules<'_>,
        class: ClientClass<'_>,
        clients: AddressSet,
    ) -> Vec<(String, AddressSet)> {
        let admitted = self.pass(&mut backend.phases, class, clients);
        let chosen = backend.servers.evaluate(class, &admitted);
        self.note_routing(&chosen);
        let upstream = |(action, clients)| if let Action::RouteTo(key) = action { Some((key, clients)) } else { None };
        chosen.clients_by_action.into_iter().filter_map(upstream).collect()
    }

    fn note_routing(&mut self, evaluation: &Evaluation<'_>) {
        for uncertainty in &evaluation.uncertainties {
            let notes = client_notes::of_routing(uncertainty);
            self.notes.extend(notes.into_iter().map(|note| (uncertainty.clients.clone(), note)));
        }
    }
}
