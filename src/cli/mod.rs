//! The command line: its arguments, and their help texts.

mod ctl;
#[cfg(feature = "gateway")]
mod gateway;
mod server_url;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::config;
use crate::name::{NamePattern, ServerName};
use crate::text::Destination;
use crate::text::pasted;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

#[cfg(feature = "top")]
pub(crate) use self::ctl::Top;
pub(crate) use self::ctl::{Close, Connections, Ctl, Filter as ConnectionFilter, Listed, RouteOrEndpoint, Verb};
#[cfg(feature = "gateway")]
pub(crate) use self::gateway::{Asked, Gateway, InFiles, PublishAddress, Served, WATCH_SECONDS};
pub(crate) use self::server_url::ServerUrl;

/// One address for the Kubernetes APIs of many clusters: routes TLS connections by server name (SNI), without terminating
/// TLS
#[derive(Debug, Parser)]
#[command(version, long_version = env!("VERSION_WITH_COMMIT"), max_term_width = 100, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the router; SIGHUP reloads, SIGUSR2 upgrades, SIGTERM and SIGINT stop it
    Run(Run),
    /// Run the router in a Kubernetes cluster, for Gateway API (TLSRoute in mode Passthrough) and for Ingress objects with
    /// `ssl-passthrough`
    #[cfg(feature = "gateway")]
    Gateway(Gateway),
    /// Validate a configuration and print the effective settings
    Check(Check),
    /// Show which route a client matches, and why; exit status 1 if the client would be refused
    Explain(Explain),
    /// Diagnose every step from clients to API servers; exit status 1 if a check fails
    Doctor(Doctor),
    /// Preview what a reload would change in a running instance, without changing it
    Plan(Plan),
    /// Ask a running instance, or change it, through its control socket
    Ctl(Ctl),
    /// Translate the configuration of another proxy; comments list what cannot be translated, and why
    Import(Import),
    /// Print a kubeconfig that connects to a cluster through the router
    Kubeconfig(Kubeconfig),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Generate shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page (roff)
    Man {
        /// Which page
        #[arg(value_enum, default_value_t = ManPage::Command)]
        page: ManPage,
    },
    /// Route two demo clusters behind one address, and connect to them
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
    /// Configuration file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["listen", "route", "default"])]
    pub(crate) config: Option<PathBuf>,
    /// Listen on this address, such as 0.0.0.0:6443, without a configuration file; repeatable
    #[arg(long, value_name = "ADDRESS", requires = "where")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Route SNI NAME (or *.NAME) to HOST:PORT; repeatable
    #[arg(long, value_name = "NAME=HOST:PORT", value_parser = route, requires = "listen")]
    pub(crate) route: Vec<(NamePattern, Destination)>,
    /// Route all other clients, including those without SNI, to HOST:PORT
    #[arg(long, value_name = "HOST:PORT", requires = "listen")]
    pub(crate) default: Option<Destination>,
    /// Watch the file and reload on change, as with `watch: true`
    #[arg(long, requires = "config")]
    pub(crate) watch: bool,
    /// Log format; overrides the configuration
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("configuration").required(true).args(["file", "config"]))]
pub(crate) struct Check {
    /// Configuration file; - for standard input
    pub(crate) file: Option<PathBuf>,
    /// Configuration file, as an option like that of other commands
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[cfg(feature = "gateway")]
    #[command(flatten)]
    pub(crate) in_files: InFiles,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("client_hello").required(true).args(["sni", "no_sni", "hello"]))]
pub(crate) struct Explain {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Server name (SNI) that the client sends
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// The client sends no server name, as for an IP address
    #[arg(long)]
    pub(crate) no_sni: bool,
    /// File with the raw bytes of a ClientHello; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) hello: Option<PathBuf>,
    /// ALPN protocols that the client offers, such as h2; not with --hello
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', conflicts_with = "hello")]
    pub(crate) alpn: Vec<String>,
    /// Listener that the client connects to [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(crate) listener: Option<String>,
    /// Client address, to evaluate `client`, `allow` and `deny`
    #[arg(long, value_name = "IP")]
    pub(crate) client: Option<IpAddr>,
    /// Address that the client connects to, to evaluate `destination`
    #[arg(long, value_name = "IP")]
    pub(crate) destination: Option<IpAddr>,
    /// TLV of the client's PROXY header, to evaluate `proxy_tlv`, such as 0xe0=kubernetes01; can be repeated
    #[arg(long = "tlv", value_name = "NUMBER=VALUE", value_parser = config::tlv)]
    pub(crate) tlvs: Vec<(u8, Box<[u8]>)>,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[cfg(feature = "gateway")]
    #[command(flatten)]
    pub(crate) in_files: InFiles,
}

#[derive(Debug, Args)]
#[cfg_attr(
    feature = "gateway",
    command(group = clap::ArgGroup::new("what").required(true).args(["config", "kubeconfig"]))
)]
pub(crate) struct Doctor {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    #[cfg_attr(feature = "gateway", arg(conflicts_with = "served"))]
    #[cfg_attr(not(feature = "gateway"), arg(required = true))]
    pub(crate) config: Option<PathBuf>,
    /// Check only routes with this name or that match this hostname; a hostname below a wildcard is sent as SNI
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Address of the running snigate, such as a load balancer [default: its listeners on this machine]
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub(crate) through: Option<Destination>,
    /// CA file (PEM) for routes whose health check has no `ca_file`
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[cfg(feature = "gateway")]
    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("running").required(true).args(["admin", "from"]))]
pub(crate) struct Plan {
    /// New configuration file; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Admin listener of the running instance
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub(crate) admin: Option<Destination>,
    /// Configuration file that is running, if there is no admin listener; open connections are then unknown
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Exit with 2 if the reload would close open connections, or could when they are unknown
    #[arg(long)]
    pub(crate) exit_code: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Proxy that the configuration is for
    #[arg(value_enum)]
    pub(crate) from: ImportFrom,
    /// Configuration file of that proxy; - for standard input
    pub(crate) file: PathBuf,
    /// More files with objects of Kubernetes
    #[cfg(feature = "gateway")]
    #[arg(value_name = "FILE")]
    pub(crate) more: Vec<PathBuf>,
    #[cfg(feature = "gateway")]
    #[command(flatten)]
    pub(crate) in_files: InFiles,
    /// Print the result even if it admits, refuses or routes some clients differently; notes at the top list the
    /// differences
    #[arg(long)]
    pub(crate) lossy: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ImportFrom {
    /// HAProxy, with TLS passthrough or termination
    Haproxy,
    /// nginx stream module, with `ssl_preread`
    Nginx,
    /// Objects of Kubernetes: Gateway API, and Ingress with ingress-nginx's `ssl-passthrough`
    #[cfg(feature = "gateway")]
    Gateway,
}

#[derive(Debug, Args)]
pub(crate) struct Kubeconfig {
    /// Name of the route, or a hostname that it matches
    #[arg(value_name = "NAME")]
    pub(crate) route: String,
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// URL of the router for clients [default: the route's first exact hostname, or NAME if a wildcard matches it, and
    /// the port of the listener]
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<ServerUrl>,
    /// Update this kubeconfig, changing only how one of its clusters is reached; - for standard input
    #[arg(long, value_name = "KUBECONFIG")]
    pub(crate) from: Option<PathBuf>,
    /// Name of the cluster in the kubeconfig [default: the route, or NAME if a wildcard matches it; with --from, the
    /// cluster of the current context]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// CA file of the cluster [default: `ca_file` of the route's health check]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_skip_tls_verify")]
    pub(crate) ca: Option<PathBuf>,
    /// Server name that kubectl sends and verifies instead of the URL's [default: a known valid one, if the URL's is
    /// not valid]
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    pub(crate) tls_server_name: Option<String>,
    /// Admin listener of the running instance, to read the hostnames in the API server's certificate
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, conflicts_with = "insecure_skip_tls_verify")]
    pub(crate) admin: Option<Destination>,
    /// Connect to the route's endpoints, to read the hostnames in the API server's certificate
    #[arg(long, conflicts_with_all = ["admin", "insecure_skip_tls_verify"])]
    pub(crate) probe: bool,
    /// Do not verify the API server's certificate
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
    /// Listen on this address; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Exit after the results instead of running until Ctrl-C
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, otherwise JSON
    Auto,
    /// Human-readable
    Text,
    /// One JSON object per line
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
