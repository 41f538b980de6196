//! `snigate demo`: routes two demo clusters behind one address, and connects to them.

mod client;
mod cluster;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use crate::config::{Config, Log};
use crate::server::{Readiness, Server};
use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing::Level;

use self::client::{Identity, VersionResult};
use self::cluster::{Authority, Cluster};
use crate::cli::Demo;
use crate::logging::{self, Logging};

const PUBLIC: &str = "kubernetes01.demo.test";
/// Requires client certificates.
const MTLS: &str = "kubernetes02.demo.test";
const UNKNOWN: &str = "kubernetes03.demo.test";
const USER: &str = "jane";
const SUCCESS: &str = "success";

pub(super) fn run(options: &Demo) -> anyhow::Result<ExitCode> {
    // Only errors until the instructions are printed, so that log lines do not mix with them.
    let logging = logging::start(&Log { level: Level::ERROR, refusals_per_second: 0, ..Log::default() });
    tokio::runtime::Runtime::new()?.block_on(run_demo(options, &logging))
}

async fn run_demo(options: &Demo, logging: &Logging) -> anyhow::Result<ExitCode> {
    let public_ca = Authority::new("kubernetes01")?;
    let mtls_ca = Authority::new("kubernetes02")?;
    let identity = mtls_ca.issue_client(USER)?;
    let public = Cluster::start(&public_ca, PUBLIC, None).await?;
    let mtls = Cluster::start(&mtls_ca, MTLS, Some(&identity)).await?;

    // Bound but not listening, so that connections are refused.
    let dead = TcpSocket::new_v4()?;
    dead.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let config = format!(
        "listen: \"{}\"
admin: 127.0.0.1:0
routes:
  - sni: {PUBLIC}
    upstream:
      endpoints: [\"{}\", \"{}\"]      # the second one is unreachable
      health_check: {{interval: 1s}}
  - sni: {MTLS}
    upstream: {}
timeouts: {{drain: 1s}}
",
        options.listen,
        public.address(),
        dead.local_addr()?,
        mtls.address()
    );
    let (mut server, _) = Server::start(Config::from_yaml(config.as_bytes())?, Vec::new(), &[], Readiness::AtStart)?;
    let address = *server.addresses().first().context("the router has no listener")?;
    let admin = server.admin_address().context("the router has no admin listener")?;

    let cases = [
        Case { name: PUBLIC, authority: &public_ca, identity: None, expected: SUCCESS },
        Case { name: MTLS, authority: &mtls_ca, identity: Some(&identity), expected: SUCCESS },
        Case { name: MTLS, authority: &mtls_ca, identity: None, expected: "CertificateRequired" },
        Case { name: UNKNOWN, authority: &public_ca, identity: None, expected: "UnrecognisedName" },
    ];
    let mut rows = Vec::new();
    for case in &cases {
        rows.push(case.row(client::get_version(address, case.name, case.authority, case.identity).await)?);
    }
    let config = config.replacen(&options.listen.to_string(), &address.to_string(), 1);
    let config = config.replace("admin: 127.0.0.1:0", &format!("admin: {admin}"));
    print(&table(address, &config, &rows))?;
    if options.once {
        server.drain().await;
        return Ok(ExitCode::SUCCESS);
    }

    let files = TempDir::with_prefix("snigate-demo-")?;
    write_files(files.path(), address, &public_ca, &mtls_ca, &identity)?;
    // A configuration without the second cluster, for `plan`.
    let (before, rest) = config.split_once(&format!("  - sni: {MTLS}\n")).context("the second route is missing")?;
    let after = rest.split_once('\n').map_or("", |(_, after)| after);
    fs::write(files.path().join("next.yaml"), format!("{before}{after}"))?;
    print(&commands(files.path(), address, admin))?;
    while server.connections() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    logging.set_level(Level::INFO);
    let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    server.drain().await;
    Ok(ExitCode::SUCCESS)
}

/// A request and its expected result.
struct Case<'a> {
    name: &'static str,
    authority: &'a Authority,
    identity: Option<&'a Identity>,
    expected: &'static str,
}

impl Case<'_> {
    fn row(&self, result: anyhow::Result<VersionResult>) -> anyhow::Result<Row> {
        let Self { name, identity, expected, .. } = self;
        let client = identity.map_or("none", |_| USER);
        match result? {
            VersionResult::Success { cluster, authenticated_as, certificate } if *expected == SUCCESS => {
                Ok([(*name).into(), client.into(), certificate, format!("200 OK from {cluster}"), authenticated_as])
            }
            VersionResult::Alert { alert, certificate } if alert == *expected => {
                let certificate = certificate.unwrap_or_else(|| "-".into());
                Ok([(*name).into(), client.into(), certificate, format!("alert {alert}"), "-".into()])
            }
            other => bail!("{name}: expected {expected}, got {other:?}"),
        }
    }
}

/// SNI, client certificate, server certificate, result, and the client that the server authenticated.
type Row = [String; 5];

fn table(address: SocketAddr, config: &str, rows: &[Row]) -> String {
    let heading = ["SNI", "CLIENT CERTIFICATE", "SERVER CERTIFICATE", "RESULT", "AUTHENTICATED AS"].map(String::from);
    let all: Vec<&Row> = std::iter::once(&heading).chain(rows).collect();
    let widths: Vec<usize> =
        (0..heading.len()).map(|column| all.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = format!("\nsnigate routes two clusters on {address}:\n\n");
    for line in config.lines() {
        let _ = writeln!(text, "    {line}");
    }
    text.push_str("\nTLS requests through it, with certificates verified end to end:\n\n");
    for row in all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "    {}", cells.join("   ").trim_end());
    }
    text.push('\n');
    text
}

fn write_files(
    directory: &Path,
    address: SocketAddr,
    public_ca: &Authority,
    mtls_ca: &Authority,
    identity: &Identity,
) -> io::Result<()> {
    let path = |name: &str| directory.join(name).display().to_string();
    fs::write(path("kubernetes01-ca.pem"), public_ca.pem())?;
    fs::write(path("kubernetes02-ca.pem"), mtls_ca.pem())?;
    fs::write(path("jane.pem"), identity.certificate_pem())?;
    fs::write(path("jane-key.pem"), identity.key_pem())?;
    let cluster = |number: &str| {
        format!(
            "- name: kubernetes{number}\n  cluster:\n    server: https://{address}\n    tls-server-name: kubernetes{number}.demo.test\n    certificate-authority: {}\n",
            path(&format!("kubernetes{number}-ca.pem"))
        )
    };
    let context =
        |number: &str| format!("- name: kubernetes{number}\n  context: {{cluster: kubernetes{number}, user: jane}}\n");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: kubernetes02\nclusters:\n{}{}contexts:\n{}{}users:\n- name: jane\n  user:\n    client-certificate: {}\n    client-key: {}\n",
        cluster("01"),
        cluster("02"),
        context("01"),
        context("02"),
        path("jane.pem"),
        path("jane-key.pem")
    );
    fs::write(path("kubeconfig"), kubeconfig)
}

fn commands(directory: &Path, address: SocketAddr, admin: SocketAddr) -> String {
    let directory = directory.display();
    let program = std::env::args().next().unwrap_or_else(|| "snigate".into());
    format!(
        "Status page, with one dead endpoint: http://{admin}/

Try these in another terminal; the log of snigate follows below:

    {program} plan -c {directory}/next.yaml --admin {admin}
    cd {directory}
    curl --cacert kubernetes01-ca.pem --connect-to ::{address} https://{PUBLIC}/version
    curl --cacert kubernetes02-ca.pem --cert jane.pem --key jane-key.pem --connect-to ::{address} https://{MTLS}/version
    openssl s_client -connect {address} -servername {UNKNOWN} </dev/null
    kubectl --kubeconfig kubeconfig get --raw /version

Press Ctrl-C to stop; this removes the files.
"
    )
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}
