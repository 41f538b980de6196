//! HAProxy's configuration: frontends with rules, and the backends they lead to.

mod access;
mod backend;
mod condition;
mod dynamic;
mod frontend;
mod keywords;
mod reasons;
mod rules;
mod sections;
mod server;

use std::collections::BTreeSet;
use std::path::Path;

use self::sections::{Line, Section};
use super::Files;
use super::draft::Draft;
use super::ledger::{Ledger, NOTHING_CARRIED, Place};
use super::routes::{self, Order, Route};
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
    let backends: Vec<&str> = are(["backend", "listen"]).map(|section| &*section.name).collect();

    for section in are(["frontend", "listen"]) {
        let lines = all(section);
        if section.is_disabled() {
            ledger.note(&Place::lines(&section.range()), "it is disabled");
        } else if frontend::takes_tls(&lines) {
            timeouts(&lines, draft, ledger);
            frontend::read(section, &lines, &backends, files, draft, ledger);
        } else {
            ledger.note(&Place::lines(&section.range()), "plain HTTP; snigate takes TLS only");
        }
    }

    let led_to = |draft: &Draft, ended_tls: bool| -> BTreeSet<String> {
        let frontends = draft.frontends.iter().filter(|frontend| !ended_tls || frontend.ended_tls);
        frontends.flat_map(|frontend| &frontend.rules).map(|rule| rule.upstream.clone()).collect()
    };
    let (used, behind_tls) = (led_to(draft, false), led_to(draft, true));
    for section in are(["backend", "listen"]) {
        if section.is_disabled() {
            ledger.note(&Place::lines(&section.range()), "it is disabled");
        } else if used.contains(&section.name) {
            let lines = all(section);
            timeouts(&lines, draft, ledger);
            backend::read(&section.name, &lines, &globals, behind_tls.contains(&section.name), draft, ledger);
            let upstream = draft.upstreams.entry(section.name.clone()).or_default();
            upstream.places.insert(section.header.place());
        } else if section.kind == "backend" {
            ledger.note(&Place::lines(&section.range()), "no rule that is carried over leads to it");
        }
    }

    let routes = routes::make(draft, Order::First, ledger);
    explain_rest(&sections, ledger);
    routes
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
