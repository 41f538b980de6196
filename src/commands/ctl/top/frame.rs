//! The page as lines of text. What colors say, words or signs say too.

use std::time::{Duration, Instant};

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::list::{Column, List, Tone, width};
use super::page::{Page, View};
use super::rows::per_second;
use super::sample::{Connections, Instance};
use super::timeline::Rates;
use crate::commands::ctl::table::{duration, rate};
use crate::commands::printable;
use crate::telemetry::UNROUTED;
use crate::text::units::counted;

/// How long it is shown that another process answers.
const REPLACED_SHOWN: Duration = Duration::from_secs(60);

/// Title, columns, and so many rows each, where there is room for all lists.
const MIN_ROWS: usize = 3;

const KEYS: &str = "? help  q quit  / filter  s sort  r reverse  Tab next list  Enter route  p pause";
const KEYS_OF_ROUTE: &str = "? help  q quit  / filter  s sort  r reverse  Tab next list  Esc back  p pause";

const HELP: [&str; 16] = [
    "Up, Down         select a row; also PgUp, PgDn, Home, End, k, j, g, G",
    "Tab, Shift-Tab   the next list, the one before; keys are for the one with ==",
    "Enter            look into the route of the row",
    "Esc              clear the filter, or go back",
    "s, S, r          sort by the next column, by the one before, in reverse",
    "/                filter the list: type, then Enter",
    "p                pause, or go on",
    "q, Ctrl-C        quit; Ctrl-Z suspends",
    "",
    "NEW/s, REJ/s     clients that arrived, and that were rejected, per second",
    "IN, OUT          bytes from clients, and to clients",
    "P50, P99         in which half, and 99 of 100, of the endpoints' first answers",
    "                 came in the last 10 seconds, estimated from a histogram",
    "READY            ready endpoints; `backup`: backups serve; `all`: none is ready",
    "_none            clients that match no route",
    "Any key closes this.",
];

/// The page in a terminal of this size.
pub(super) fn frame(page: &mut Page, columns: usize, lines: usize, has_colors: bool) -> Vec<Line<'static>> {
    let painter = Painter { columns, has_colors };
    let mut frame = head(page, lines, &painter);
    let room = lines.saturating_sub(frame.len() + 1);
    let mut body = if page.is_help { help(&painter) } else { lists(page, room, &painter) };
    body.resize(room, Line::default());
    frame.extend(body);
    frame.push(foot(page, &painter));
    frame.truncate(lines);
    frame
}

struct Painter {
    columns: usize,
    has_colors: bool,
}

impl Painter {
    /// As wide as the terminal.
    fn line(&self, text: &str, style: Style) -> Line<'static> {
        Line::from(Span::styled(aligned(text, self.columns, false), style))
    }

    fn tone(&self, tone: Tone) -> Style {
        let color = |color| if self.has_colors { Style::new().fg(color) } else { Style::new() };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Doubtful => color(Color::Yellow),
            Tone::Bad => color(Color::Red),
            Tone::Faint => Style::new().add_modifier(Modifier::DIM),
        }
    }
}

/// Cut, with a sign of that, or filled with spaces.
fn aligned(text: &str, columns: usize, to_the_right: bool) -> String {
    let taken = width(text);
    if taken <= columns {
        let spaces = " ".repeat(columns - taken);
        return if to_the_right { spaces + text } else { text.to_owned() + &spaces };
    }
    let (mut cut, mut left) = (String::new(), columns.saturating_sub(1));
    for character in text.chars() {
        let taken = width(character.encode_utf8(&mut [0; 4]));
        if taken > left {
            break;
        }
        left -= taken;
        cut.push(character);
    }
    if columns > 0 {
        // Half of a wide character may be missing.
        cut.push_str(&" ".repeat(left));
        cut.push('~');
    }
    cut
}

fn head(page: &Page, lines: usize, painter: &Painter) -> Vec<Line<'static>> {
    let mut head = vec![painter.line(&title(page), Style::new().add_modifier(Modifier::BOLD))];
    let banners = banners(page).into_iter().map(|(text, tone)| painter.line(&format!("! {text}"), painter.tone(tone)));
    match lines {
        // The worst of what is wrong instead.
        ..8 => banners.take(1).chain(head).take(1).collect(),
        8..12 => head.into_iter().chain(banners.take(1)).collect(),
        12.. => {
            head.push(painter.line(&states(page.connections.as_ref()), Style::new()));
            head.push(painter.line(&rates_line(page), Style::new()));
            head.into_iter().chain(banners.take(lines / 6)).collect()
        }
    }
}

fn title(page: &Page) -> String {
    let Instance { version, host, process, uptime_seconds, .. } = &page.timeline.now.instance;
    let paused = if page.is_paused { "PAUSED: " } else { "" };
    #[expect(clippy::cast_precision_loss, reason = "seconds since the start")]
    let uptime = duration(*uptime_seconds as f64);
    printable(&format!("{paused}snigate {version} on {host}, process {process}, up {uptime}"))
}

/// The worst first.
fn banners(page: &Page) -> Vec<(String, Tone)> {
    let instance = &page.timeline.now.instance;
    let ago = |at: &Instant| duration(at.elapsed().as_secs_f64());
    let mut banners = Vec::new();
    if let Some((since, reason)) = &page.unreachable {
        banners.push((format!("not reachable for {}, trying again: {reason}", ago(since)), Tone::Bad));
    }
    if instance.is_draining {
        banners.push(("draining: the instance is about to stop, and not ready for new clients".into(), Tone::Bad));
    }
    if let Some(error) = &instance.reload_error {
        banners.push((format!("the last reload failed, the configuration before is in use: {error}"), Tone::Bad));
    }
    match instance.failing_open {
        0 => {}
        1 => banners.push(("1 route has no ready endpoint, and tries all of its endpoints".into(), Tone::Bad)),
        more => banners.push((format!("{more} routes have no ready endpoint, and try all of theirs"), Tone::Bad)),
    }
    if let Some((at, before)) = &page.replaced
        && at.elapsed() < REPLACED_SHOWN
    {
        let now = instance.process;
        banners.push((
            format!("process {before} was replaced by {now} {} ago: upgraded or restarted", ago(at)),
            Tone::Doubtful,
        ));
    }
    match instance.predecessor_connections {
        0 => {}
        more => {
            banners
                .push((format!("upgraded: old processes still have {}", counted(more, "connection")), Tone::Doubtful));
        }
    }
    banners.into_iter().map(|(text, tone)| (printable(&text), tone)).collect()
}

fn states(connections: Option<&Connections>) -> String {
    let Some(Connections { awaiting_hello, connecting, relaying, parked, rejected, .. }) = connections else {
        return "open connections are being counted".into();
    };
    let states = [
        (*relaying, "relaying"),
        (*parked, "parked"),
        (*connecting, "connecting"),
        (*awaiting_hello, "awaiting ClientHello"),
        (*rejected, "rejected"),
    ];
    let open: u64 = states.iter().map(|(count, _)| count).sum();
    let states = states.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!("{count} {state}"));
    let states = states.collect::<Vec<_>>().join(", ");
    if open == 0 { "0 open".into() } else { format!("{open} open: {states}") }
}

/// Rates of the route that is looked into, or of all.
fn rates_line(page: &Page) -> String {
    let timeline = &page.timeline;
    let Some(name) = page.route() else { return rates(timeline.totals()) };
    let route = timeline.now.routes.iter().find(|route| route.name == name);
    let (counters, names) = match route {
        Some(route) => (&route.counters, route.sni.join(", ")),
        None if name == UNROUTED => (&timeline.now.unrouted, "clients that match no route".into()),
        None => return printable(&format!("{name}: there is no such route any more")),
    };
    let names = if names.is_empty() || names == name { String::new() } else { format!(" ({names})") };
    printable(&format!("{name}: {}{names}", rates(timeline.rates(name, counters))))
}

fn rates(rates: Option<Rates>) -> String {
    let Some(Rates { accepted, rejected, received, sent }) = rates else { return "rates follow".into() };
    let (accepted, rejected) = (rate(accepted), rate(rejected));
    let (received, sent) = (per_second(received), per_second(sent));
    format!("{accepted} new/s, {rejected} rejected/s, in {received}/s, out {sent}/s")
}

fn help(painter: &Painter) -> Vec<Line<'static>> {
    HELP.iter().map(|line| painter.line(line, Style::new())).collect()
}

fn foot(page: &mut Page, painter: &Painter) -> Line<'static> {
    let is_filtering = page.is_filtering;
    let is_route = page.route().is_some();
    let filter = printable(&page.view().list().filter);
    let text = match (is_filtering, is_route) {
        (true, _) => format!("filter: {filter}_"),
        (false, true) => KEYS_OF_ROUTE.into(),
        (false, false) => KEYS.into(),
    };
    painter.line(&text, Style::new().add_modifier(Modifier::BOLD))
}

fn lists(page: &mut Page, room: usize, painter: &Painter) -> Vec<Line<'static>> {
    let of = page.route().map(|name| printable(&format!(" of {name}"))).unwrap_or_default();
    let View { lists, focus } = page.view();
    let needed: Vec<usize> = lists.iter().map(|(_, list)| list.rows.len() + 2).collect();
    let heights = heights(room, &needed, *focus);
    let mut lines = Vec::new();
    for (index, ((kind, list), height)) in lists.iter_mut().zip(heights).enumerate() {
        let title = format!("{}{of}: {}", kind.title(), about(list));
        lines.extend(list_lines(list, &title, height, index == *focus, painter));
    }
    lines
}

/// How many rows there are, and which.
fn about(list: &List) -> String {
    let (shown, total) = (list.rows.len(), list.total);
    let count = if shown < total { format!("{shown} of {total}") } else { total.to_string() };
    let note = if list.note.is_empty() { String::new() } else { format!(" ({})", list.note) };
    let column = list.columns[list.sorted_by].title;
    let order = if list.is_descending() { "descending" } else { "ascending" };
    let filter = if list.filter.is_empty() { String::new() } else { format!(", filter {}", printable(&list.filter)) };
    format!("{count}{note}, by {column} {order}{filter}")
}

/// The lines of each list, as many as it needs if there is room; that with the focus comes first, or is the only one.
fn heights(room: usize, needed: &[usize], focus: usize) -> Vec<usize> {
    const LEAST: usize = 2 + MIN_ROWS;
    let mut heights = vec![0; needed.len()];
    if room < LEAST * needed.len() {
        heights[focus] = room;
        return heights;
    }
    let mut left = room;
    for (height, needed) in heights.iter_mut().zip(needed) {
        *height = (*needed).clamp(3, LEAST);
        left -= *height;
    }
    for index in std::iter::once(focus).chain(0..needed.len()) {
        let more = needed[index].saturating_sub(heights[index]).min(left);
        heights[index] += more;
        left -= more;
    }
    heights
}

fn list_lines(list: &mut List, title: &str, height: usize, is_focused: bool, painter: &Painter) -> Vec<Line<'static>> {
    let sign = if is_focused { "=" } else { "-" };
    let title = format!("{} {title} {}", sign.repeat(2), sign.repeat(painter.columns));
    let widths = list.widths(painter.columns.saturating_sub(2));
    let heads = list.columns.iter().map(|column| column.title);
    let mut lines = vec![
        painter
            .line(&title.chars().take(painter.columns).collect::<String>(), Style::new().add_modifier(Modifier::BOLD)),
        painter.line(
            &format!("  {}", cells(list.columns, &widths, heads)),
            Style::new().add_modifier(Modifier::UNDERLINED),
        ),
    ];
    let shown = list.shown(height.saturating_sub(lines.len()));
    let position = list.position();
    for (row, index) in list.rows[shown.clone()].iter().zip(shown) {
        let is_selected = is_focused && index == position;
        let sign = if is_selected { ">" } else { " " };
        let texts = row.cells.iter().map(|cell| cell.text.as_str());
        let style = painter.tone(row.tone);
        let style = if is_selected { style.add_modifier(Modifier::REVERSED) } else { style };
        lines.push(painter.line(&format!("{sign} {}", cells(list.columns, &widths, texts)), style));
    }
    lines.resize(height, Line::default());
    lines
}

fn cells<'t>(columns: &[Column], widths: &[usize], texts: impl Iterator<Item = &'t str>) -> String {
    let all = columns.iter().zip(widths).zip(texts).filter(|((_, width), _)| **width > 0);
    let each = all.map(|((column, width), text)| aligned(text, *width, column.is_number));
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use serde_json::{Value, json};

    use super::*;
    use crate::commands::ctl::top::draw;
    use crate::commands::ctl::top::fetch::{Answer, Wanted};
    use crate::commands::ctl::top::page::Next;
    use crate::commands::ctl::top::sample::Sample;

    fn route(name: &str, accepted: u64, states: &[&str]) -> Value {
        let endpoint = |(number, state): (usize, &&str)| json!({"address": format!("10.0.0.{number}:6443"), "state": state, "known": true, "connections": number, "cause": "refused"});
        json!({
            "name": name,
            "sni": [name, "other.example"],
            "connections": 7,
            "accepted": accepted,
            "bytes_received": 2048 * accepted,
            "bytes_sent": 0,
            "answer_counts": [accepted, 0],
            "serving": "primary",
            "upstream": [{"destination": "x:6443", "endpoints": states.iter().enumerate().map(endpoint).collect::<Vec<_>>()}],
        })
    }

    fn answer(at: Instant, process: u64, accepted: u64) -> Answer {
        let status = json!({
            "version": "1.2.3",
            "host": "edge\u{1b}[2J",
            "process": process,
            "uptime_seconds": 90_000,
            "config": {"last_error": "line 4:\nunknown key"},
            "answer_bounds_seconds": [0.001],
            "unrouted": {"accepted": 4, "rejected": 4},
            "routes": [
                route("idle.example", 0, &["ready"]),
                route("busy.example", accepted, &["ready", "dead", "drained"]),
            ],
        });
        let refusals = json!([
            {"time": "2026-01-01T00:00:00Z", "client": "192.0.2.1:5", "route": "_none", "server_name": "evil\u{202e}", "outcome": "unknown_name", "reason": null},
            {"time": "2026-01-01T00:00:01Z", "client": "192.0.2.2:5", "route": "busy.example", "server_name": "busy.example", "outcome": "denied", "reason": null},
        ]);
        Answer::Sample(Ok(Sample::new(at, &status, &refusals)))
    }

    fn page() -> Page {
        let begun = Instant::now();
        let Answer::Sample(Ok(first)) = answer(begun, 17, 10) else { unreachable!() };
        let mut page = Page::new(first);
        page.answer(answer(begun + Duration::from_secs(2), 17, 20));
        page
    }

    fn shown(page: &mut Page, columns: u16, lines: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        draw(&mut terminal, page, false).unwrap();
        let buffer = terminal.backend().buffer();
        let is_colored = buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert!(!is_colored, "no color where none is wanted");
        let line = |line: &[Cell]| line.iter().map(Cell::symbol).collect::<String>().trim_end().to_owned();
        buffer.content().chunks(columns.into()).map(line).collect()
    }

    fn press(page: &mut Page, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\x1b' => KeyCode::Esc,
                'v' => KeyCode::Down,
                other => KeyCode::Char(other),
            };
            assert_eq!(page.key(KeyEvent::new(code, KeyModifiers::NONE)), Next::Show);
        }
    }

    #[test]
    fn in_80x24_all_is_shown() {
        let lines = shown(&mut page(), 80, 24);
        let expected = [
            r"snigate 1.2.3 on edge\u{1b}[2J, process 17, up 1d01h",
            "open connections are being counted",
            "5.0 new/s, 0 rejected/s, in 10.0 KiB/s, out 0 B/s",
            r"! the last reload failed, the configuration before is in use: line 4:\nunknown ~",
            "== Routes: 3, by NEW/s descending ==============================================",
            "  ROUTE         NEW/s   OPEN     IN/s    OUT/s  REJ/s    P50    P99 READY",
            "> busy.example    5.0      7 10.0 KiB      0 B      0 0.5 ms 1.0 ms 1/3",
            "  idle.example      0      7      0 B      0 B      0      -      - 1/1",
            "  _none             0      -        -        -      0      -      - -",
            "-- Endpoints: 4 (1 dead, 1 drained, 2 ready), by STATE ascending ---------------",
            "  ROUTE        ENDPOINT      STATE     OPEN CAUSE",
            "  busy.example 10.0.0.1:6443 dead         1 refused",
            "  busy.example 10.0.0.2:6443 drained      2 refused",
            "  idle.example 10.0.0.0:6443 ready        0 refused",
            "  busy.example 10.0.0.0:6443 ready        0 refused",
            "-- Refusals: 2, by AGE ascending -----------------------------------------------",
        ];
        assert_eq!(lines[..expected.len()], expected);
        assert!(lines[18].ends_with(r"192.0.2.1:5 _none        evil\u{202e} unknown_name"), "{lines:#?}");
        assert!(lines[23].starts_with("? help  q quit") && lines[23].ends_with("p pause"), "{lines:#?}");
    }

    #[test]
    fn in_20x5_the_worst_and_the_list_with_the_focus_are_shown() {
        let mut page = page();
        let expected = [
            "! the last reload f~",
            "== Routes: 3, by NEW",
            "  ROUTE        NEW/s",
            "> busy.examp~    5.0",
            "? help  q quit  / f~",
        ];
        assert_eq!(shown(&mut page, 20, 5), expected);
        press(&mut page, "\tv");
        assert_eq!(
            shown(&mut page, 20, 5)[1..4],
            ["== Endpoints: 4 (1 d", "  ENDPOINT     STATE", "> 10.0.0.2:64~ drai~"]
        );
    }

    #[test]
    fn the_keys_fit_into_80x24() {
        let mut page = page();
        press(&mut page, "?");
        let lines = shown(&mut page, 80, 24);
        for line in HELP {
            assert!(lines.iter().any(|shown| shown == line), "{line}");
        }
        press(&mut page, "q");
        assert!(shown(&mut page, 80, 24)[4].starts_with("== Routes"), "any key closes it");
    }

    #[test]
    fn no_size_is_too_small() {
        for keys in ["", "?", "/x", "\n", "\n\t", "\t\t"] {
            let mut page = page();
            press(&mut page, keys);
            for columns in 1..40 {
                for lines in 1..30 {
                    shown(&mut page, columns, lines);
                }
            }
        }
    }

    #[test]
    fn a_route_is_looked_into() {
        let mut page = page();
        press(&mut page, "\n");
        let wanted = Wanted { connections: Some(("busy.example".into(), "age")), is_paused: false };
        assert_eq!(page.wanted(), wanted);
        let connection = json!({
            "id": "1-2", "client": "192.0.2.9:7", "server_name": "busy.example", "endpoint": "10.0.0.0:6443",
            "age_seconds": 61.0, "idle_seconds": 1.0, "bytes_received": 10, "bytes_sent": 2048, "client_rtt_ms": 0.4,
            "state": "parked",
        });
        let answer = json!({"states": {"relaying": 3, "parked": 1}, "matched": 700, "connections": [connection]});
        page.answer(Answer::Connections(wanted, Connections::new(&answer)));
        let lines = shown(&mut page, 80, 24);
        assert_eq!(lines[1], "4 open: 3 relaying, 1 parked");
        assert_eq!(lines[2], "busy.example: 5.0 new/s, 0 rejected/s, in 10.0 KiB/s, out 0 B/s (busy.example, ~");
        assert_eq!(lines[4], "== Endpoints of busy.example: 3 (1 dead, 1 drained, 1 ready), by STATE ascending");
        assert_eq!(lines[5], "  ENDPOINT      STATE     OPEN CAUSE");
        let text = lines.join("\n");
        for part in [
            "-- Connections of busy.example: 1 of 700, by AGE descending ---",
            "  192.0.2.9:7 busy.example 10.0.0.0:6443  1m01s     1s     10 B  2.0 KiB parked",
            "-- Refusals of busy.example: 1, by AGE ascending ---",
        ] {
            assert!(text.contains(&part[..part.len().min(80)]), "{part}\nin\n{text}");
        }
        assert!(!text.contains("192.0.2.1:5"), "of the others: {text}");
        press(&mut page, "\ts");
        assert_eq!(page.wanted().connections, Some(("busy.example".into(), "idle")), "the instance sorts them");
        press(&mut page, "\x1b");
        assert_eq!(page.wanted(), Wanted::default());
        assert!(shown(&mut page, 80, 24)[4].starts_with("== Routes: 3"));
    }

    #[test]
    fn lists_are_filtered_sorted_and_paused_by_keys() {
        let mut page = page();
        press(&mut page, "/IDLEx");
        page.key(KeyEvent::new(KeyCode::Backspace, KeyModifiers::NONE));
        let lines = shown(&mut page, 80, 24);
        assert!(lines[4].starts_with("== Routes: 1 of 3, by NEW/s descending, filter IDLE =="), "{lines:#?}");
        assert!(lines[6].starts_with("> idle.example"), "{lines:#?}");
        assert_eq!(lines[23], "filter: IDLE_");
        press(&mut page, "\n\x1bSr");
        let lines = shown(&mut page, 80, 24);
        assert!(lines[4].starts_with("== Routes: 3, by ROUTE descending =="), "{lines:#?}");
        assert!(lines[6].starts_with("> idle.example") && lines[8].starts_with("  _none"), "{lines:#?}");
        press(&mut page, "p");
        assert!(page.wanted().is_paused);
        page.answer(answer(Instant::now(), 17, 1000));
        assert!(shown(&mut page, 80, 24)[0].starts_with("PAUSED: snigate 1.2.3"));
        assert_eq!(page.timeline.now.routes[1].counters.accepted, 20);
        assert_eq!(page.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::Quit);
        assert_eq!(page.key(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE)), Next::Quit);
    }

    #[test]
    fn it_is_said_that_the_instance_was_replaced_or_is_gone() {
        let mut page = page();
        page.answer(answer(Instant::now(), 18, 3));
        let lines = shown(&mut page, 80, 24);
        assert_eq!(lines[2], "rates follow");
        assert_eq!(lines[4], "! process 17 was replaced by 18 0s ago: upgraded or restarted");
        page.answer(Answer::Sample(Err(anyhow::anyhow!("no process listens there"))));
        assert_eq!(shown(&mut page, 80, 24)[3], "! not reachable for 0s, trying again: no process listens there");
        page.answer(answer(Instant::now(), 18, 3));
        assert!(!shown(&mut page, 80, 24).join("\n").contains("not reachable"));
    }

    #[test]
    fn what_is_wrong_is_colored_too() {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        draw(&mut terminal, &mut page(), true).unwrap();
        let color = |line: u16| terminal.backend().buffer()[(4, line)].fg;
        assert_eq!([3, 6, 11, 12, 13].map(color), [Color::Red, Color::Yellow, Color::Red, Color::Yellow, Color::Reset]);
    }

    #[test]
    fn wide_characters_are_cut_as_wide() {
        assert_eq!(aligned("東京.example", 8, false), "東京.ex~");
        assert_eq!(aligned("東京", 4, false), "東京");
        assert_eq!(aligned("東京", 3, false), "東~");
        assert_eq!(aligned("東京", 2, false), " ~");
        assert_eq!(aligned("東京", 5, true), " 東京");
        assert_eq!(aligned("a", 0, false), "");
    }
}
