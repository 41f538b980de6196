use serde::Deserialize;

use super::metadata::Metadata;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Ingress {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) spec: IngressSpec,
}

const PASSTHROUGH: &str = "nginx.ingress.kubernetes.io/ssl-passthrough";

/// The class of an Ingress, before the field existed.
const CLASS: &str = "kubernetes.io/ingress.class";

impl Ingress {
    /// The class, if it has ingress-nginx's annotation for TLS passthrough.
    pub(crate) fn passthrough_class(&self) -> Option<&String> {
        let annotations = &self.metadata.annotations;
        let passes_through = annotations.get(PASSTHROUGH).is_some_and(|value| value == "true");
        let class = self.spec.ingress_class_name.as_ref().or_else(|| annotations.get(CLASS));
        class.filter(|_| passes_through)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct IngressSpec {
    pub(crate) ingress_class_name: Option<String>,
    pub(crate) default_backend: Option<IngressBackend>,
    pub(crate) rules: Vec<IngressRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct IngressRule {
    /// Absent or empty: every name.
    pub(crate) host: Option<String>,
    pub(crate) http: Option<IngressPaths>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct IngressPaths {
    pub(crate) paths: Vec<IngressPath>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct IngressPath {
    /// Absent: `/`.
    #[serde(default)]
    pub(crate) path: Option<String>,
    pub(crate) backend: IngressBackend,
}

/// A Service, or something else that is not supported.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct IngressBackend {
    pub(crate) service: Option<IngressService>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct IngressService {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) port: IngressPort,
}

/// One of the two.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct IngressPort {
    pub(crate) number: Option<u16>,
    pub(crate) name: Option<String>,
}
