//! Configurations of HAProxy: frontends with rules, and backends.

mod acl;
mod backend;
mod bind;
mod check;
mod conditional_blocks;
mod context;
mod criterion;
mod dynamic_backend;
mod endpoint;
mod frontend;
mod keywords;
mod pattern_file;
mod proxy_header;
mod reasons;
mod request_rules;
mod sample;
mod sections;
mod server;
mod source;
mod test_arguments;

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::upstream::arrives_at;

use self::context::FileContext;
use self::sections::{Section, SectionLine};
use super::draft::{Action, Draft};
use super::files::SourceFiles;
use super::notes::{Location, NOT_TRANSLATED, Notes};
use super::routes::{self, RouteDraft};
use super::values::duration;

pub(super) fn translate(source: &str, files: &SourceFiles, draft: &mut Draft, notes: &mut Notes) -> Vec<RouteDraft> {
    let sections = sections::read(source, notes);
    for section in &sections {
        for line in &section.lines {
            if let Some(reason) = keywords::misspelt(&line.words(), &section.kind) {
                notes.note(&line.location(), reason);
            }
        }
    }
    let context = FileContext::new(&sections, files);
    let local_tls = local_tls_frontends(&sections);
    for section in &sections {
        match section.kind.as_str() {
            "global" => read_timeouts(&section.lines.iter().collect::<Vec<_>>(), draft, notes),
            "frontend" | "listen" => {
                let lines = sections::with_defaults(section, &sections);
                if section.is_disabled() {
                    notes.note(&section.location(), "disabled in the source");
                } else if let Some(by) = local_tls.get(&section.header.number) {
                    let reason = format!(
                        "not translated: `{by}` forwards connections to this frontend, which terminates TLS; keep \
                        HAProxy running for it. snigate does not listen at its address"
                    );
                    notes.note(&section.location(), reason);
                } else if frontend::receives_tls(&lines) {
                    read_timeouts(&lines, draft, notes);
                    frontend::read(section, &lines, &context, draft, notes);
                } else {
                    notes.note(&section.location(), "not translated: plain HTTP; snigate routes TLS only");
                }
            }
            _ => {}
        }
    }

    let (used, used_after_tls) = (used_backends(draft, false), used_backends(draft, true));
    for section in sections.iter().filter(|section| section.is_backend()) {
        if section.is_disabled() {
            notes.note(&section.location(), "disabled in the source");
        } else if used.contains(&section.name) {
            let lines = sections::with_defaults(section, &sections);
            read_timeouts(&lines, draft, notes);
            let is_after_tls = used_after_tls.contains(&section.name);
            backend::read(section, &lines, &context, is_after_tls, draft, notes);
        } else if section.kind == "backend" {
            notes.note(&section.location(), "not translated: no translated rule uses this backend");
        }
    }

    let routes = routes::make(draft, notes);
    explain_rest(&sections, notes);
    routes
}

/// The backends that frontends route to; with `terminated`, only frontends that terminate TLS.
fn used_backends(draft: &Draft, terminated: bool) -> BTreeSet<String> {
    let frontends = draft.frontends.iter().filter(|frontend| !terminated || frontend.terminated_tls);
    let actions = frontends.flat_map(|frontend| &frontend.rules).map(|rule| rule.then.clone());
    actions.filter_map(|action| if let Action::RouteTo(key) = action { Some(key) } else { None }).collect()
}

/// Frontends that terminate TLS only for connections that another frontend passes through to them: by the line numbers
/// of their headers, with the backends that forward to them.
fn local_tls_frontends(sections: &[Section]) -> HashMap<usize, &str> {
    let terminates = |section: &&Section| section.lines.iter().any(bind::terminates_tls);
    let frontends = sections.iter().filter(|section| section.is_frontend() && !section.is_disabled());
    let (terminating, passing): (Vec<&Section>, Vec<&Section>) = frontends.partition(terminates);
    let mut used: HashSet<&str> = HashSet::new();
    let mut uses_any = false;
    for section in passing {
        let lines = sections::with_defaults(section, sections);
        if !frontend::receives_tls(&lines) {
            continue;
        }
        used.insert(&section.name);
        for line in lines {
            if let [word, backend, ..] = &line.words[..]
                && (word == "use_backend" || word == "default_backend")
            {
                uses_any |= backend.contains('%');
                used.insert(backend);
            }
        }
    }
    let mut found = HashMap::new();
    let is_used = |section: &&Section| section.is_backend() && (uses_any || used.contains(section.name.as_str()));
    for backend in sections.iter().filter(is_used) {
        let servers = backend.lines.iter().filter(|line| line.words[0] == "server");
        let servers = servers.filter_map(|line| endpoint::destination(line.words.get(2)?).ok()?.address());
        for address in servers {
            for frontend in &terminating {
                if frontend.lines.iter().flat_map(bind::addresses).any(|listener| arrives_at(address, listener)) {
                    found.insert(frontend.header.number, backend.name.as_str());
                }
            }
        }
    }
    found
}

fn read_timeouts(lines: &[&SectionLine], draft: &mut Draft, notes: &mut Notes) {
    for line in lines {
        let (timeouts, text) = match line.words()[..] {
            ["timeout", "client" | "server" | "tunnel", text, ..] => (&mut draft.timeouts.idle, text),
            ["timeout", "client-fin" | "server-fin", text, ..] => (&mut draft.timeouts.half_close, text),
            ["hard-stop-after", text, ..] => (&mut draft.timeouts.drain, text),
            _ => continue,
        };
        match duration(text, "ms") {
            Ok(span) => drop(timeouts.insert((span, line.location()))),
            Err(reason) => notes.note(&line.location(), format!("`{text}`: {reason}")),
        }
    }
}

/// For lines that have neither translation nor note yet.
fn explain_rest(sections: &[Section], notes: &mut Notes) {
    for section in sections {
        let is_used = section.range().any(|number| notes.is_translated(number));
        if matches!(section.kind.as_str(), "global" | "defaults") && is_used {
            notes.translated(&section.header.location());
        }
        for line in section.lines.iter().filter(|line| notes.is_unexplained(line.number)).collect::<Vec<_>>() {
            match reasons::why_not_translated(&line.words(), &section.kind) {
                Some(reason) => notes.note(&line.location(), reason),
                None => notes.not_needed(&line.location()),
            }
        }
        if notes.is_unexplained(section.header.number) {
            notes.note(&section.header.location(), NOT_TRANSLATED);
        }
    }
    for number in notes.unexplained() {
        notes.note(&Location::line(number), "not understood");
    }
}
