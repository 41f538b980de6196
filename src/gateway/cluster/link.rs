//! The connection to the API server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

/// Credentials are not read again sooner.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{}: {error}", .path.display())]
    Kubeconfig { path: PathBuf, error: KubeconfigError },
    #[error("not in a cluster, and no --kubeconfig: {0}")]
    InCluster(#[from] InClusterError),
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// How to reach the API server.
pub(super) struct Way {
    /// `None`: as a Pod.
    pub(super) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; `None`: its current one.
    pub(super) context: Option<String>,
    /// How long the API server may be silent.
    pub(super) silence: Duration,
}

/// A client of the API server that can be replaced by one with new credentials.
pub(super) struct Link {
    client: ArcSwap<Client>,
    /// The URL of the API server.
    server: String,
    way: Way,
    /// When credentials were read last.
    renewed: Mutex<Instant>,
}

impl Link {
    pub(super) async fn open(way: Way) -> Result<Arc<Self>, ConnectError> {
        let config = way.config().await?;
        let server = config.cluster_url.to_string();
        let client = ArcSwap::from_pointee(Client::try_from(config)?);
        Ok(Arc::new(Self { client, server, way, renewed: Mutex::new(Instant::now()) }))
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn client(&self) -> Client {
        Client::clone(&self.client.load())
    }

    /// The namespace of this process, or of the kubeconfig's context.
    pub(super) fn namespace(&self) -> String {
        self.client.load().default_namespace().to_owned()
    }

    /// The API server has refused the credentials at `since`: reads them again, unless somebody has done so meanwhile.
    pub(super) async fn renew(&self, since: Instant) {
        let mut last = self.renewed.lock().await;
        if *last > since || last.elapsed() < MIN_PAUSE {
            return;
        }
        *last = Instant::now();
        let renewed = self.way.config().await.and_then(|config| Ok(Client::try_from(config)?));
        match renewed {
            Ok(client) => {
                self.client.store(Arc::new(client));
                info!("the API server refused the credentials; they were read again");
            }
            Err(reason) => warn!(%reason, "cannot read the credentials for the API server"),
        }
    }
}

impl Way {
    async fn config(&self) -> Result<Config, ConnectError> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let invalid = |error| ConnectError::Kubeconfig { path: path.clone(), error };
                let file = Kubeconfig::read_from(path).map_err(invalid)?;
                let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
                Config::from_custom_kubeconfig(file, &options).await.map_err(invalid)?
            }
            None => Config::incluster()?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        config.read_timeout = Some(self.silence);
        Ok(config)
    }
}

/// Whether the API server does not accept the credentials.
pub(super) fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}

/// The error and its causes, in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
