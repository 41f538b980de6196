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

/// A client of the API server that can be replaced by one with new credentials.
pub(super) struct Link {
    client: ArcSwap<Client>,
    kubeconfig: Option<PathBuf>,
    /// How long the API server may be silent.
    silence: Duration,
    /// When credentials were read last.
    renewed: Mutex<Instant>,
}

impl Link {
    pub(super) async fn open(kubeconfig: Option<PathBuf>, silence: Duration) -> Result<Arc<Self>, ConnectError> {
        let client = ArcSwap::from_pointee(connect(kubeconfig.as_ref(), silence).await?);
        Ok(Arc::new(Self { client, kubeconfig, silence, renewed: Mutex::new(Instant::now()) }))
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
        let mut renewed = self.renewed.lock().await;
        if *renewed > since || renewed.elapsed() < MIN_PAUSE {
            return;
        }
        *renewed = Instant::now();
        match connect(self.kubeconfig.as_ref(), self.silence).await {
            Ok(client) => {
                self.client.store(Arc::new(client));
                info!("the API server refused the credentials; they were read again");
            }
            Err(reason) => warn!(%reason, "cannot read the credentials for the API server"),
        }
    }
}

async fn connect(kubeconfig: Option<&PathBuf>, silence: Duration) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let invalid = |error| ConnectError::Kubeconfig { path: path.clone(), error };
            let file = Kubeconfig::read_from(path).map_err(invalid)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(invalid)?
        }
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(silence);
    Ok(Client::try_from(config)?)
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
