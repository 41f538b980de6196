//! Configurations of nginx with its stream module.

mod include;
mod listen;
mod map;
mod reasons;
mod server;
mod stream;
mod syntax;
mod upstream;

use self::stream::StreamBlock;
use self::syntax::Directive;
use super::draft::Draft;
use super::files::SourceFiles;
use super::notes::{Location, NOT_TRANSLATED, Notes};
use super::routes::{self, RouteDraft};

pub(super) fn translate(source: &str, files: &SourceFiles, draft: &mut Draft, notes: &mut Notes) -> Vec<RouteDraft> {
    let all = include::read(source, files, notes);
    // A file that is meant to be included in a `stream` block.
    let is_bare =
        !all.iter().any(|one| is(one, "stream") || is(one, "http")) && all.iter().any(|one| is(one, "server"));
    let mut stream = StreamBlock::default();
    for directive in &all {
        if is_bare {
            stream.add(directive, notes);
        } else if is(directive, "stream") {
            directive.inside().iter().for_each(|inner| stream.add(inner, notes));
        } else if directive.block.is_some() && is(directive, "events") {
            notes.not_needed(&directive.whole());
        } else if directive.block.is_some() {
            let name = directive.words.first().map_or("", String::as_str);
            notes.note(&directive.whole(), format!("`{name}` not translated: only `stream` blocks are"));
        } else {
            reasons::explain(directive, notes);
        }
    }

    for server in std::mem::take(&mut stream.servers) {
        server::read(server, &mut stream, draft, notes);
    }
    server::add_rules(&mut stream, draft);
    for (name, directive) in stream.upstreams.iter().chain(&stream.maps) {
        if !stream.used.contains(name) {
            notes.note(&directive.whole(), format!("not translated: no translated `server` uses `{name}`"));
        }
    }

    let routes = routes::make(draft, notes);
    for directive in all.iter().filter(|one| is(one, "stream")) {
        directive.first_and_last_line().iter().for_each(|location| notes.translated(location));
    }
    for number in notes.unexplained() {
        notes.note(&Location::line(number), NOT_TRANSLATED);
    }
    routes
}

fn is(directive: &Directive, name: &str) -> bool {
    directive.words.first().is_some_and(|word| word == name)
}
