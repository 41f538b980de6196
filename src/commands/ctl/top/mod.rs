//! `snigate ctl top`: a page in the terminal.

mod fetch;
mod frame;
mod list;
mod page;
mod rows;
mod sample;
mod terminal;
mod timeline;

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ratatui::backend::Backend;
use ratatui::crossterm::event::{self, Event};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use self::page::{Next, Page};
use self::terminal::Screen;
use crate::cli::Top;
use crate::logging;

/// How often it is drawn at least, for times that pass.
const TICK: Duration = Duration::from_secs(1);

pub(super) async fn run(socket: &Path, options: &Top) -> anyhow::Result<()> {
    ensure!(stdout().is_terminal(), "standard output is not a terminal; use `snigate ctl routes`, or `--json` with it");
    match std::env::var("TERM").as_deref() {
        Ok("" | "dumb") | Err(_) => {
            bail!("the terminal cannot show a page (TERM is `dumb` or not set); use `snigate ctl routes`")
        }
        Ok(_) => {}
    }
    // An instance that cannot be reached is reported like by the other verbs.
    let mut page = Page::new(fetch::sample(socket).await?);
    let (want, wanted) = watch::channel(page.wanted());
    let (answers, mut answered) = mpsc::channel(1);
    let every = Duration::from_secs(options.interval);
    tokio::spawn(fetch::samples(socket.into(), every, wanted.clone(), answers.clone()));
    tokio::spawn(fetch::connections(socket.into(), wanted, answers));
    let has_colors = logging::supports_color(&stdout());
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::new().context("cannot use the terminal")?;
    let mut events = events();
    loop {
        draw(&mut screen.terminal, &mut page, has_colors)?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.is_press() => match page.key(key) {
                    Next::Show => {}
                    Next::Suspend => screen.suspend()?,
                    Next::Quit => return Ok(()),
                },
                // Such as another size.
                Some(_) => {}
                // There is no terminal any more.
                None => return Ok(()),
            },
            Some(answer) = answered.recv() => page.answer(answer),
            _ = tick.tick() => {}
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
        want.send_if_modified(|want| std::mem::replace(want, page.wanted()) != *want);
    }
}

/// Keys, and changes of the size.
fn events() -> mpsc::UnboundedReceiver<Event> {
    let (sender, receiver) = mpsc::unbounded_channel();
    // Reading blocks. The thread ends with the process.
    thread::spawn(move || while event::read().is_ok_and(|event| sender.send(event).is_ok()) {});
    receiver
}

fn draw<B: Backend>(terminal: &mut Terminal<B>, page: &mut Page, has_colors: bool) -> Result<(), B::Error> {
    let show = |frame: &mut Frame| {
        let Rect { width, height, .. } = frame.area();
        let lines = frame::frame(page, width.into(), height.into(), has_colors);
        for (line, row) in lines.iter().zip(0..height) {
            frame.buffer_mut().set_line(0, row, line, width);
        }
    };
    terminal.draw(show).map(drop)
}
