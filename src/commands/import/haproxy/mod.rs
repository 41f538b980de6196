//! HAProxy's configuration: frontends with rules, and the backends they lead to.

mod access;
mod backend;
mod bind;
mod branches;
mod check;
mod condition;
mod dynamic;
mod frontend;
mod keywords;
mod lists;
mod reasons;
mod sample;
mod sections;
mod server;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use self::sections::{Line, Section};
use super::Files;
use crate::upstream::arrives_at as leads_to;

use self::frontend::Around;
use super::draft::{Draft, Outcome};
use super::ledger::{Ledger, NOTHING_CARRIED, Place};
use super::routes::{self, Route};
use super::values::duration;

pub(super) fn translate(source: &str, files: &Files, draft: &mut Draft, ledger: &mut Ledger) -> Vec<Route> {
    let sections = sections::read(source, ledger);
    for section in &sections {
        for line in &section.lines {
            if let Some(reason) = keywords::misspelt(&line.words(), &section.kind) {
                ledger.note(&line.place(), reason);
            }
        }
    }
    let globals = Globals::read(&sections, draft, ledger);
    let lines = |section: &'_ Section| section.defaults.map_or(&[][..], |number| &sections[number].lines[..]);
    let all = |section| -> Vec<&Line> { lines(section).iter().chain(&section.lines).collect() };
    let are = |kinds: [&'static str; 2]| sections.iter().filter(move |section| kinds.contains(&section.kind.as_str()));
    let periods: HashMap<&str, u64> =
        sections.iter().filter_map(|section| Some((&*section.name, section.table_period()?))).collect();
    let around = Around {
        backends: are(["backend", "listen"]).map(|section| &*section.name).collect(),
        files,
        period: &|table| periods.get(table).copied(),
    };
    let staying = staying(&sections, &all);

    for section in are(["frontend", "listen"]) {
        let lines = all(section);
        if section.is_disabled() {
            ledger.note(&Place::lines(&section.range()), "it is disabled");
        } else if let Some(by) = staying.get(&section.header.number) {
            let reason = format!(
                "HAProxy still ends TLS here: `{by}` passes the rest on to it. No listener takes its address, and its \
                rules stay there"
            );
            ledger.note(&Place::lines(&section.range()), reason);
        } else if frontend::takes_tls(&lines) {
            timeouts(&lines, draft, ledger);
            frontend::read(section, &lines, &around, draft, ledger);
        } else {
            ledger.note(&Place::lines(&section.range()), "plain HTTP; snigate takes TLS only");
        }
    }

    let led_to = |draft: &Draft, ended_tls: bool| -> BTreeSet<String> {
        let frontends = draft.frontends.iter().filter(|frontend| !ended_tls || frontend.ended_tls);
        let outcomes = frontends.flat_map(|frontend| &frontend.rules).map(|rule| rule.then.clone());
        outcomes.filter_map(|outcome| if let Outcome::To(key) = outcome { Some(key) } else { None }).collect()
    };
    let (used, behind_tls) = (led_to(draft, false), led_to(draft, true));
    for section in are(["backend", "listen"]) {
        if section.is_disabled() {
            ledger.note(&Place::lines(&section.range()), "it is disabled");
        } else if used.contains(&section.name) {
            let lines = all(section);
            timeouts(&lines, draft, ledger);
            let is_behind_tls = behind_tls.contains(&section.name);
            backend::read(section, &lines, &globals, is_behind_tls, &around, draft, ledger);
        } else if section.kind == "backend" {
            ledger.note(&Place::lines(&section.range()), "no rule that is carried over leads to it");
        }
    }

    let routes = routes::make(draft, ledger);
    explain_rest(&sections, ledger);
    routes
}

/// Frontends that end TLS for what a frontend in front of them does not pass through to others: by the lines that they
/// begin with, and the backends that lead to them.
fn staying<'a>(sections: &'a [Section], all: &dyn Fn(&'a Section) -> Vec<&'a Line>) -> HashMap<usize, &'a str> {
    let is_front =
        |section: &&&Section| matches!(section.kind.as_str(), "frontend" | "listen") && !section.is_disabled();
    let ends_tls = |section: &&Section| section.lines.iter().any(|line| bind::is_bind(line) && bind::ends_tls(line));
    let (ending, passing): (Vec<&Section>, Vec<&Section>) =
        sections.iter().collect::<Vec<_>>().iter().filter(is_front).copied().partition(ends_tls);
    let mut named: HashSet<&str> = HashSet::new();
    let mut is_any = false;
    for section in passing.iter().filter(|section| frontend::takes_tls(&all(section))) {
        named.insert(&section.name);
        for line in all(section) {
            match &line.words[..] {
                [word, backend, ..] if word == "use_backend" || word == "default_backend" => {
                    is_any |= backend.contains('%');
                    named.insert(backend);
                }
                _ => {}
            }
        }
    }
    let mut staying = HashMap::new();
    for section in sections.iter().filter(|section| matches!(section.kind.as_str(), "backend" | "listen")) {
        if !is_any && !named.contains(section.name.as_str()) {
            continue;
        }
        let servers =
            section.lines.iter().filter(|line| line.words[0] == "server").filter_map(|line| line.words.get(2));
        for address in servers.filter_map(|text| server::destination(text).ok()?.address()) {
            for front in &ending {
                let mut listening = front.lines.iter().filter(|line| bind::is_bind(line)).flat_map(bind::addresses);
                if listening.any(|listener| leads_to(address, listener)) {
                    staying.insert(front.header.number, section.name.as_str());
                }
            }
        }
    }
    staying
}

/// What holds for all sections.
#[derive(Default)]
struct Globals {
    ca_base: Option<String>,
}

impl Globals {
    fn read(sections: &[Section], draft: &mut Draft, ledger: &mut Ledger) -> Self {
        let mut globals = Self::default();
        let lines = sections.iter().filter(|section| section.kind == "global").flat_map(|section| &section.lines);
        for line in lines {
            match line.words()[..] {
                ["ca-base", directory, ..] => globals.ca_base = Some(directory.into()),
                ["hard-stop-after", text, ..] => match duration(text, "ms") {
                    Ok(span) => drop(draft.timeouts.drain.insert((span, line.place()))),
                    Err(reason) => ledger.note(&line.place(), format!("`{text}`: {reason}")),
                },
                _ => {}
            }
        }
        globals
    }

    fn ca_file(&self, file: &str) -> String {
        match &self.ca_base {
            Some(base) if !file.starts_with('@') => Path::new(base).join(file).to_string_lossy().into(),
            _ => file.into(),
        }
    }
}

/// Those that hold for all connections here.
fn timeouts(lines: &[&Line], draft: &mut Draft, ledger: &mut Ledger) {
    for line in lines {
        let (timeouts, text) = match line.words()[..] {
            ["timeout", "client" | "server" | "tunnel", text, ..] => (&mut draft.timeouts.idle, text),
            ["timeout", "client-fin" | "server-fin", text, ..] => (&mut draft.timeouts.half_close, text),
            _ => continue,
        };
        match duration(text, "ms") {
            Ok(span) => drop(timeouts.insert((span, line.place()))),
            Err(reason) => ledger.note(&line.place(), format!("`{text}`: {reason}")),
        }
    }
}

/// Lines that nobody has asked for.
fn explain_rest(sections: &[Section], ledger: &mut Ledger) {
    for section in sections {
        let range = section.range();
        let is_used = range.clone().any(|number| ledger.is_carried(number));
        if matches!(section.kind.as_str(), "global" | "defaults") && is_used {
            ledger.carry(&section.header.place());
        }
        for line in &section.lines {
            if !ledger.unseen(line.number..=line.number).is_empty() {
                ledger.note(&line.place(), reasons::of(&line.words(), &section.kind));
            }
        }
        if !ledger.unseen(section.header.number..=section.header.number).is_empty() {
            ledger.note(&section.header.place(), NOTHING_CARRIED);
        }
    }
    for number in ledger.unseen(ledger.all()) {
        ledger.note(&Place::line(number), "not understood");
    }
}
