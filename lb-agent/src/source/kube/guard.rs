//! Objects that do not decode: one of them must not take a whole list or watch with it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;

/// An object, or its metadata and what is wrong with the rest. kube's `DeserializeGuard` does the
/// same, at the price of two copies of every object.
#[derive(Clone, Debug)]
pub enum Guarded<K> {
    /// It decodes.
    Object(K),
    /// It does not.
    Undecodable {
        /// What is known of it.
        metadata: Box<ObjectMeta>,
        /// Why.
        reason: String,
    },
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match K::deserialize(&value) {
            Ok(object) => Self::Object(object),
            Err(error) => {
                let text = |name: &str| {
                    let field = value.get("metadata")?.get(name)?;
                    field.as_str().map(str::to_owned)
                };
                // The metadata may be what does not decode: only this is needed of it.
                let metadata = ObjectMeta {
                    name: text("name"),
                    namespace: text("namespace"),
                    resource_version: text("resourceVersion"),
                    ..ObjectMeta::default()
                };
                Self::Undecodable {
                    metadata: Box::new(metadata),
                    reason: error.to_string(),
                }
            }
        })
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Object(object) => object.meta(),
            Self::Undecodable { metadata, .. } => metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Object(object) => object.meta_mut(),
            Self::Undecodable { metadata, .. } => metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    #[test]
    fn what_does_not_decode_keeps_its_name() {
        let object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"ports": "80"}});
        let guarded: Guarded<Service> = serde_json::from_value(object).unwrap();
        assert_eq!(guarded.meta().name.as_deref(), Some("a"));
        let Guarded::Undecodable { reason, .. } = guarded else {
            panic!("it decodes")
        };
        assert!(reason.contains("invalid type: string \"80\""), "{reason}");
        let good = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}});
        let guarded: Guarded<Service> = serde_json::from_value(good).unwrap();
        assert!(matches!(guarded, Guarded::Object(_)));
    }
}
