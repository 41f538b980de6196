//! What can be typed. Nothing is done here.

mod server_url;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::config;
use crate::name::{NamePattern, ServerName};
use crate::text::Destination;
use crate::text::pasted;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use self::server_url::ServerUrl;

/// One address for the Kubernetes APIs of many clusters: routes TLS connections by the name their client asks for,
/// without terminating TLS.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Route connections until SIGTERM or SIGINT; SIGHUP reloads, SIGUSR2 upgrades
    Run(Run),
    /// Say whether a configuration is valid, and what it means; binds nothing
    Check(Check),
    /// Say which route a client would take, and why; exits with 1 if it would be refused
    Explain(Explain),
    /// Look at every step from a client to its API servers, and say what is wrong; exits with 1 if anything is
    Doctor(Doctor),
    /// Say what a reload to a configuration would do to a running instance; changes nothing
    Plan(Plan),
    /// Translate the configuration of another proxy; what cannot be carried over stands in comments, with the reason
    Import(Import),
    /// Print a kubeconfig that leads to a cluster through the router
    Kubeconfig(Kubeconfig),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Print what makes a shell complete this command line
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, in roff
    Man {
        /// Which page
        #[arg(value_enum, default_value_t = ManPage::Command)]
        page: ManPage,
    },
    /// Show it at work: two throwaway clusters behind one address, and clients that reach them
    #[cfg(feature = "demo")]
    Demo(Demo),
}

#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).args(["config", "listen"]),
    group = clap::ArgGroup::new("where").args(["route", "default"]).multiple(true),
    override_usage = "snigate run --config <FILE>\n       snigate run --listen <ADDRESS>... [--route <NAME=HOST:PORT>]... [--default <HOST:PORT>]"
)]
pub(crate) struct Run {
    /// The configuration
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["listen", "route", "default"])]
    pub(crate) config: Option<PathBuf>,
    /// Listen here (without a file), such as 0.0.0.0:6443; may be repeated
    #[arg(long, value_name = "ADDRESS", requires = "where")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Send clients that ask for NAME (or *.NAME) to HOST:PORT; may be repeated
    #[arg(long, value_name = "NAME=HOST:PORT", value_parser = route, requires = "listen")]
    pub(crate) route: Vec<(NamePattern, Destination)>,
    /// Send all other clients, also those that ask for no name, to HOST:PORT
    #[arg(long, value_name = "HOST:PORT", requires = "listen")]
    pub(crate) default: Option<Destination>,
    /// Look at the file all the time, and take it when it changes, as with `watch: true`
    #[arg(long, requires = "config")]
    pub(crate) watch: bool,
    /// What log lines look like; wins over the file
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("configuration").required(true).args(["file", "config"]))]
pub(crate) struct Check {
    /// The configuration; - for standard input
    pub(crate) file: Option<PathBuf>,
    /// The same, as other commands are given it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("asks").required(true).args(["sni", "hello"]))]
pub(crate) struct Explain {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// A client that asks for this name
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// A client that sends these bytes; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) hello: Option<PathBuf>,
    /// The application protocols it offers, such as h2 (with --sni)
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', conflicts_with = "hello")]
    pub(crate) alpn: Vec<String>,
    /// The listener it arrives at; the first one unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) listener: Option<String>,
    /// The address that it comes from, for `allow` and `deny`
    #[arg(long, value_name = "IP")]
    pub(crate) client: Option<IpAddr>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only the routes with this name or that take it, such as one below their wildcard, which is then asked for
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Where the running snigate is reached, such as a balancer; its listeners on this machine unless given
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub(crate) through: Option<Destination>,
    /// The CAs of routes whose health check has no `ca_file`, as PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("running").required(true).args(["admin", "from"]))]
pub(crate) struct Plan {
    /// The new configuration; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The admin listener of the running instance
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub(crate) admin: Option<Destination>,
    /// The configuration that is running, where there is no admin listener: without counts of connections
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Exit with 2 if the reload would close open connections, or might where they are not counted
    #[arg(long)]
    pub(crate) exit_code: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Whose configuration it is
    #[arg(value_enum)]
    pub(crate) from: ImportFrom,
    /// The configuration; - for standard input
    pub(crate) file: PathBuf,
    /// Write the result even if clients are admitted, refused or routed otherwise than the source does; notes at its
    /// head say which
    #[arg(long)]
    pub(crate) lossy: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ImportFrom {
    /// TLS that ends at the proxy, or passes through
    Haproxy,
    /// The stream module, with `ssl_preread`
    Nginx,
}

#[derive(Debug, Args)]
pub(crate) struct Kubeconfig {
    /// The route, or a name that it takes
    #[arg(value_name = "NAME")]
    pub(crate) route: String,
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// How clients reach the router; unless given, by the route's first exact name, or NAME if it is below a
    /// wildcard, and its listener's port
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<ServerUrl>,
    /// Rewrite this kubeconfig: all but where one of its clusters is stays as it is; - for standard input
    #[arg(long, value_name = "KUBECONFIG")]
    pub(crate) from: Option<PathBuf>,
    /// What the cluster is called; unless given, as the route or, below a wildcard, as NAME, and with --from the one of
    /// its current context
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// The cluster's CA; unless given, the `ca_file` of the route's health check
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_skip_tls_verify")]
    pub(crate) ca: Option<PathBuf>,
    /// The name that kubectl asks for and verifies in place of the URL's; unless given, one that is known to do where
    /// the URL's does not
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    pub(crate) tls_server_name: Option<String>,
    /// The admin listener of the running instance, which knows the names in the API server's certificate
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, conflicts_with = "insecure_skip_tls_verify")]
    pub(crate) admin: Option<Destination>,
    /// Have kubectl believe any certificate
    #[arg(long)]
    pub(crate) insecure_skip_tls_verify: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ManPage {
    /// snigate(1): the commands
    Command,
    /// snigate.yaml(5): the keys of the configuration
    Config,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Listen here; with port 0 the kernel chooses
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Exit after the table instead of staying up until Ctrl-C
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere
    Auto,
    /// For people
    Text,
    /// One object per line
    Json,
}

impl From<LogFormat> for config::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Auto => Self::Auto,
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

fn route(text: &str) -> Result<(NamePattern, Destination), String> {
    let (name, endpoint) = text.split_once('=').ok_or("expected NAME=HOST:PORT")?;
    let name = NamePattern::parse(name).map_err(|error| pasted::name(name, error))?;
    Ok((name, endpoint.parse()?))
}

fn host_port(text: &str) -> Result<Destination, String> {
    text.parse()
        .map_err(|error| format!("{error}; expected HOST:PORT such as router.example.com:6443 or [2001:db8::1]:6443"))
}

fn server_name(text: &str) -> Result<String, String> {
    ServerName::parse(text.as_bytes()).map(|name| name.to_string()).map_err(|error| pasted::name(text, error))
}
