//! The kubelet's side of the Container Runtime Interface, version 1: the few requests that make and end a
//! pod, over gRPC on containerd's socket. Message fields are those of Kubernetes' `cri-api`.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

#[derive(Clone, PartialEq, Message)]
pub struct PodMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PortMapping {
    /// 0 is TCP.
    #[prost(int32, tag = "1")]
    pub protocol: i32,
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxPod {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodMetadata>,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// A request or an answer that is one name.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<PodStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct PodNetwork {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct PodList {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    holds: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// One containerd.
pub struct Cri<'a> {
    pub socket: &'a Path,
}

impl Cri<'_> {
    /// One request on a connection of its own, as patient as a kubelet in a hurry.
    fn ask<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, String> {
        let body = request.encode_to_vec();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), self.send(method, &body))
                .await
                .unwrap_or_else(|_| Err("no answer within 60 s".to_owned()))
        });
        let bytes = answer.map_err(|error| format!("{method}: {error}"))?;
        A::decode(bytes).map_err(|error| format!("{method}: {error}"))
    }

    async fn send(&self, method: &str, body: &[u8]) -> Result<Bytes, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let stream = UnixStream::connect(self.socket).await.map_err(|e| text(&e))?;
        let (mut sender, driver) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| text(&e))?;
        tokio::spawn(driver);
        // gRPC's frame: not compressed, length, message.
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let frame = [&[0], &length[..], body].concat();
        let request = hyper::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(frame)))
            .map_err(|e| text(&e))?;
        let response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let head = response.headers().clone();
        let collected = response.into_body().collect().await.map_err(|e| text(&e))?;
        let trailers = collected.trailers().cloned().unwrap_or(head);
        let field = |name| trailers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        match field("grpc-status").as_str() {
            "0" => Ok(collected.to_bytes().slice(5..)),
            _ => Err(field("grpc-message")),
        }
    }

    /// Whether the network is ready, or what is said to be wrong.
    pub fn network(&self) -> Result<(), String> {
        let answer: StatusAnswer = self.ask("Status", &Empty {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        match conditions.into_iter().find(|c| c.kind == "NetworkReady") {
            Some(condition) if condition.holds => Ok(()),
            condition => Err(condition.unwrap_or_default().message),
        }
    }

    pub fn run_pod(&self, config: &PodConfig) -> Result<String, String> {
        let request = RunPod { config: Some(config.clone()) };
        self.ask::<Id>("RunPodSandbox", &request).map(|answer| answer.id)
    }

    /// The pod's addresses as the kubelet would publish them.
    pub fn addresses(&self, pod: &str) -> Result<Vec<String>, String> {
        let answer: PodStatusAnswer = self.ask("PodSandboxStatus", &Id { id: pod.to_owned() })?;
        let network = answer.status.unwrap_or_default().network.unwrap_or_default();
        Ok(std::iter::once(network.ip).chain(network.additional.into_iter().map(|ip| ip.id)).collect())
    }

    /// Makes and starts a container of the image in the pod.
    pub fn start(
        &self,
        pod: &str,
        pod_config: &PodConfig,
        image: &str,
        command: &[&str],
    ) -> Result<(), String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "server".to_owned() }),
            image: Some(Id { id: image.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        };
        let pod_config = Some(pod_config.clone());
        let request = CreateContainer { pod: pod.to_owned(), config: Some(config), pod_config };
        let made: Id = self.ask("CreateContainer", &request)?;
        self.ask::<Empty>("StartContainer", &made).map(drop)
    }

    /// As the kubelet ends a pod: stopped, stopped again, removed.
    pub fn end_pod(&self, pod: &str) -> Result<(), String> {
        let id = Id { id: pod.to_owned() };
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox"] {
            self.ask::<Empty>(method, &id)?;
        }
        Ok(())
    }

    pub fn pods(&self) -> Result<Vec<String>, String> {
        let list: PodList = self.ask("ListPodSandbox", &Empty {})?;
        Ok(list.items.into_iter().map(|item| item.id).collect())
    }
}
