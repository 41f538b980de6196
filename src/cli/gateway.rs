//! The arguments of `snigate gateway`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::LogFormat;
use crate::name::ServerName;

/// How long one watch lasts, unless it is said.
pub(crate) const WATCH_SECONDS: u32 = 240;

#[derive(Debug, Args)]
pub(crate) struct Gateway {
    /// Configuration file for everything but what the cluster says; it need not have `listen` and `routes`
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) served: Served,
    /// Write nothing to the cluster: no status, no Events, no Lease
    #[arg(long)]
    pub(crate) no_status: bool,
    /// How to reach the API server [default: as a Pod]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How long one watch lasts, in seconds; a connection to the API server that is silent for longer is replaced
    #[arg(long, value_name = "SECONDS", default_value_t = WATCH_SECONDS, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) watch_seconds: u32,
    /// Log format; overrides the configuration
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// What of a cluster is served, and where clients reach it.
#[derive(Clone, Debug, Args)]
#[group(id = "served")]
pub(crate) struct Served {
    /// GatewayClasses with this controller are served
    #[arg(long, value_name = "NAME", default_value = "snigate.dev/gateway", value_parser = controller)]
    pub(crate) controller: String,
    /// Read objects of this namespace only; repeatable [default: all]
    #[arg(long = "namespace", value_name = "NAMESPACE", value_parser = label)]
    pub(crate) namespaces: Vec<String>,
    /// Publish the addresses of this Service, of type LoadBalancer, as those of Gateways and Ingress objects
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service, conflicts_with = "publish_addresses")]
    pub(crate) publish_service: Option<(String, String)>,
    /// Publish this IP address or hostname instead; repeatable [default: the addresses of this machine]
    #[arg(long = "publish-address", value_name = "ADDRESS")]
    pub(crate) publish_addresses: Vec<PublishAddress>,
    /// Serve Ingress objects of this class that have the annotation nginx.ingress.kubernetes.io/ssl-passthrough
    #[arg(long, value_name = "CLASS")]
    pub(crate) ingress_class: Option<String>,
    /// Port for Ingress objects
    #[arg(long, value_name = "PORT", default_value_t = 443, requires = "ingress_class")]
    pub(crate) ingress_port: u16,
}

/// Which of the objects in files are served, and where.
#[derive(Debug, Args)]
#[group(id = "in_files")]
pub(crate) struct InFiles {
    /// Of Ingress objects of Kubernetes, those of this class are served that have the annotation
    /// nginx.ingress.kubernetes.io/ssl-passthrough [default: nginx]
    #[arg(long, value_name = "CLASS")]
    pub(crate) ingress_class: Option<String>,
    /// Port for Ingress objects of Kubernetes [default: 443]
    #[arg(long, value_name = "PORT")]
    pub(crate) ingress_port: Option<u16>,
}

impl InFiles {
    /// An option that only objects can have.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let Self { ingress_class, ingress_port } = self;
        let class = ingress_class.as_ref().map(|_| "--ingress-class");
        class.or_else(|| ingress_port.map(|_| "--ingress-port"))
    }
}

/// The cluster that `snigate doctor` asks.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// Check a Kubernetes cluster with this kubeconfig in place of a configuration file; the options below are those of
    /// `snigate gateway` there
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", requires = "kubeconfig", conflicts_with = "config")]
    pub(crate) context: Option<String>,
    #[command(flatten)]
    pub(crate) served: Served,
}

/// Where clients reach the router.
#[derive(Clone, Debug)]
pub(crate) enum PublishAddress {
    Ip(IpAddr),
    Hostname(String),
}

impl FromStr for PublishAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let name = ServerName::parse(text.as_bytes())
            .map_err(|error| format!("neither an IP address nor a hostname: {error}"))?;
        Ok(Self::Hostname(name.to_string()))
    }
}

fn controller(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((domain, path)) if domain.contains('.') && !path.is_empty() => Ok(text.into()),
        _ => Err("expected DOMAIN/PATH such as snigate.dev/gateway".into()),
    }
}

/// A DNS label (RFC 1123), as namespaces are.
fn label(text: &str) -> Result<String, String> {
    let is_valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 63 || !text.chars().all(is_valid) {
        return Err("expected lowercase letters, digits and `-`".into());
    }
    Ok(text.into())
}

fn service(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').ok_or("expected NAMESPACE/NAME")?;
    Ok((label(namespace)?, label(name)?))
}
