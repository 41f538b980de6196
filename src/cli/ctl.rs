//! The arguments of `snigate ctl`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Ctl {
    /// Control socket of the instance: `control` in its configuration
    #[arg(long, value_name = "PATH", default_value = "/run/snigate/control.sock", global = true, display_order = 1000)]
    pub(crate) socket: PathBuf,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List established connections
    Connections(Connections),
    /// Close established connections, no faster than a rate; Ctrl-C stops it
    Close(Close),
    /// Send no new connections to an endpoint, or to any of a route; open connections stay
    Drain(RouteOrEndpoint),
    /// Send new connections again to what was drained
    Resume(RouteOrEndpoint),
    /// Reload the configuration, and print what has changed or why it failed
    Reload,
    /// Set the log level until the next reload
    LogLevel {
        /// The level
        #[arg(value_enum)]
        level: Level,
    },
    /// Show routes, endpoints and refusals in the terminal, live; ? lists the keys
    #[cfg(feature = "top")]
    Top(Top),
    /// List routes
    Routes(Listed),
    /// List endpoints
    Endpoints {
        /// Only those of this route
        #[arg(value_name = "ROUTE")]
        route: Option<String>,
        #[command(flatten)]
        listed: Listed,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Listed {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(feature = "top")]
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Update every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
}

#[derive(Debug, Args)]
pub(crate) struct RouteOrEndpoint {
    /// Name of the route
    #[arg(value_name = "ROUTE")]
    pub(crate) route: String,
    /// Address of one of its endpoints [default: all of them]
    #[arg(value_name = "ADDRESS")]
    pub(crate) endpoint: Option<SocketAddr>,
}

/// Connections that match all of these.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Connections of this route
    #[arg(long, value_name = "NAME")]
    pub(crate) route: Option<String>,
    /// Connections to this endpoint
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) endpoint: Option<SocketAddr>,
    /// Connections from this address or network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) client: Option<String>,
    /// Connections whose client asked for this name
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// Connections that are at least this old, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older: Option<Duration>,
    /// Connections that have moved no data for this long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) idle: Option<Duration>,
    /// The connection with this ID
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Connections {
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// What to sort by: the oldest, the longest idle or the most bytes first
    #[arg(long, value_enum, default_value_t = Sort::Age)]
    pub(crate) sort: Sort,
    /// List at most this many
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub(crate) limit: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// List again and again, every 2 seconds or as many as given, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) watch: Option<u64>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["route", "endpoint", "client", "sni", "older", "idle", "id", "all"]))]
pub(crate) struct Close {
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// All connections
    #[arg(long, conflicts_with_all = ["route", "endpoint", "client", "sni", "older", "idle", "id"])]
    pub(crate) all: bool,
    /// Connections per second, 1 to 100000
    #[arg(long, value_name = "NUMBER", default_value = "100", value_parser = rate)]
    pub(crate) rate: u32,
    /// Print how many would be closed, and close none
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Sort {
    Age,
    Idle,
    Received,
    Sent,
    Client,
    Route,
    Endpoint,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `100` or, as in the configuration, `100/s`.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse().ok();
    number
        .filter(|number| (1..=100_000).contains(number))
        .ok_or_else(|| "expected connections per second, 1 to 100000".into())
}
