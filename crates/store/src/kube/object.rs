//! The few fields of the API's documents that we read: Nodes in lists and watch streams, a Pod's node, and
//! refusals. Takes bytes as they come, gives [`Message`]s.

use model::Subnets;
use model::codec::annotation::{self, Annotations, LONGEST, Names};

use super::scan::{Scanner, Sink};

/// Marks the end of the objects in a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";
/// Other texts are names, versions, times, networks: this is more than any of them.
const LONGEST_FIELD: usize = 1024;

/// What we keep of a Node, and of a Pod its `node_name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) uid: String,
    /// `resourceVersion`
    pub(super) version: String,
    /// `creationTimestamp`
    pub(super) created: String,
    pod_cidrs: Vec<String>,
    pod_cidr: Option<String>,
    pub(super) annotations: Annotations,
    /// Status of the condition NetworkUnavailable.
    pub(super) unavailable: Option<String>,
    /// `spec.nodeName` of a Pod.
    pub(super) node_name: String,
    /// A bookmark that ends a streaming list.
    pub(super) initial_end: bool,
}

impl Node {
    /// Its subnets, by its own specification.
    pub(super) fn subnets(&self) -> Result<Subnets, String> {
        annotation::pod_cidrs(&self.pod_cidrs, self.pod_cidr.as_deref())
    }
}

/// Kinds of watch events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Added or modified.
    Put,
    Deleted,
    Bookmark,
}

/// A refusal (`metav1.Status`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// One thing a document told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// An event of a watch.
    Event(Event, Box<Node>),
    /// An object: of a list, or by itself.
    Object(Box<Node>),
    /// The end of a list.
    ListEnd {
        version: String,
        /// Where the next page begins; empty = this was the last.
        more: String,
    },
    /// The answer is no; in a watch, its end.
    Refused(Refusal),
}

/// Where in a document we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The whole document.
    Top,
    /// A Node, below `object` or in `items`.
    Object,
    Metadata,
    Annotations,
    Spec,
    Cidrs,
    Status,
    Conditions,
    Condition,
    Items,
    Other,
}

/// A member that is wanted, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Type,
    Kind,
    Code,
    Reason,
    Message,
    Name,
    Uid,
    Version,
    Created,
    Continue,
    PodCidr,
    NodeName,
    Annotation(annotation::Item),
    InitialEnd,
    ConditionType,
    ConditionStatus,
}

/// Reads documents piece by piece.
pub(super) struct Decoder<'a> {
    scanner: Scanner,
    reader: Reader<'a>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(names: &'a Names) -> Decoder<'a> {
        Decoder { scanner: Scanner::new(), reader: Reader::new(names) }
    }

    /// Takes a piece, hands out what it completed.
    ///
    /// # Errors
    /// It is not JSON.
    pub(super) fn feed(&mut self, bytes: &[u8], mut out: impl FnMut(Message)) -> Result<(), String> {
        let result = self.scanner.feed(bytes, &mut self.reader);
        self.reader.done.drain(..).for_each(&mut out);
        result
    }

    /// Whether the last document is complete.
    pub(super) fn at_rest(&self) -> bool {
        self.scanner.at_rest()
    }
}

struct Reader<'a> {
    names: &'a Names,
    places: Vec<Place>,
    /// The member whose value comes next.
    field: Option<Field>,
    /// Where a container that opens next would be.
    next: Place,
    event: String,
    kind: String,
    refusal: Refusal,
    node: Node,
    more: String,
    /// A list's own version, put aside while its items are read.
    list: Option<String>,
    condition: (String, String),
    done: Vec<Message>,
}

impl<'a> Reader<'a> {
    fn new(names: &'a Names) -> Reader<'a> {
        Reader {
            names,
            places: Vec::new(),
            field: None,
            next: Place::Top,
            event: String::new(),
            kind: String::new(),
            refusal: Refusal::default(),
            node: Node::default(),
            more: String::new(),
            list: None,
            condition: Default::default(),
            done: Vec::new(),
        }
    }

    fn place(&self) -> Option<Place> {
        self.places.last().copied()
    }

    fn top_ends(&mut self) {
        let node = Box::new(std::mem::take(&mut self.node));
        let refusal = std::mem::take(&mut self.refusal);
        let (event, kind) = (std::mem::take(&mut self.event), std::mem::take(&mut self.kind));
        let list = self.list.take();
        let more = std::mem::take(&mut self.more);
        let message = match event.as_str() {
            "ADDED" | "MODIFIED" => Message::Event(Event::Put, node),
            "DELETED" => Message::Event(Event::Deleted, node),
            "BOOKMARK" => Message::Event(Event::Bookmark, node),
            "ERROR" => Message::Refused(refusal),
            // A kind of event from the future is no reason to stop.
            "" => match list {
                Some(version) => {
                    // Metadata may come after the items.
                    let version = if version.is_empty() { node.version } else { version };
                    Message::ListEnd { version, more }
                }
                None if kind.ends_with("List") => Message::ListEnd { version: node.version, more },
                None if kind == "Status" => Message::Refused(refusal),
                None => Message::Object(node),
            },
            _ => return,
        };
        self.done.push(message);
    }
}

impl Sink for Reader<'_> {
    fn open(&mut self, array: bool) -> bool {
        let place = match (self.place(), array) {
            (None, false) => Place::Top,
            (Some(Place::Items), false) => Place::Object,
            (Some(Place::Conditions), false) => Place::Condition,
            _ => match (self.next, array) {
                (Place::Items | Place::Cidrs | Place::Conditions, true) => self.next,
                (
                    Place::Object | Place::Metadata | Place::Annotations | Place::Spec | Place::Status,
                    false,
                ) => self.next,
                _ => Place::Other,
            },
        };
        if place == Place::Items {
            self.list = Some(std::mem::take(&mut self.node).version);
        }
        self.places.push(place);
        self.field = None;
        self.next = Place::Other;
        place != Place::Other
    }

    fn close(&mut self) {
        let closed = self.places.pop();
        self.field = None;
        self.next = Place::Other;
        match closed {
            Some(Place::Top) => self.top_ends(),
            Some(Place::Object) if self.place() == Some(Place::Items) => {
                let node = std::mem::take(&mut self.node);
                self.done.push(Message::Object(Box::new(node)));
            }
            Some(Place::Condition) => {
                let (kind, status) = std::mem::take(&mut self.condition);
                if kind == "NetworkUnavailable" {
                    self.node.unavailable = Some(status);
                }
            }
            _ => {}
        }
    }

    fn key(&mut self, name: &str) {
        self.next = Place::Other;
        self.field = None;
        let field = match (self.place(), name) {
            (Some(Place::Top), "object") => return self.next = Place::Object,
            (Some(Place::Top), "items") => return self.next = Place::Items,
            (Some(Place::Top | Place::Object), "metadata") => return self.next = Place::Metadata,
            (Some(Place::Top | Place::Object), "spec") => return self.next = Place::Spec,
            (Some(Place::Top | Place::Object), "status") => return self.next = Place::Status,
            (Some(Place::Metadata), "annotations") => return self.next = Place::Annotations,
            (Some(Place::Spec), "podCIDRs") => return self.next = Place::Cidrs,
            (Some(Place::Status), "conditions") => return self.next = Place::Conditions,
            (Some(Place::Top), "type") => Field::Type,
            (Some(Place::Top), "kind") => Field::Kind,
            (Some(Place::Top | Place::Object), "code") => Field::Code,
            (Some(Place::Top | Place::Object), "reason") => Field::Reason,
            (Some(Place::Top | Place::Object), "message") => Field::Message,
            (Some(Place::Metadata), "name") => Field::Name,
            (Some(Place::Metadata), "uid") => Field::Uid,
            (Some(Place::Metadata), "resourceVersion") => Field::Version,
            (Some(Place::Metadata), "creationTimestamp") => Field::Created,
            (Some(Place::Metadata), "continue") => Field::Continue,
            (Some(Place::Spec), "podCIDR") => Field::PodCidr,
            (Some(Place::Spec), "nodeName") => Field::NodeName,
            (Some(Place::Annotations), INITIAL_END) => Field::InitialEnd,
            (Some(Place::Annotations), name) => match self.names.item(name) {
                Some(item) => Field::Annotation(item),
                None => return,
            },
            (Some(Place::Condition), "type") => Field::ConditionType,
            (Some(Place::Condition), "status") => Field::ConditionStatus,
            _ => return,
        };
        self.field = Some(field);
    }

    fn wants(&self) -> usize {
        match (self.field, self.place()) {
            (Some(Field::Annotation(_)), _) => LONGEST + 1,
            (Some(_), _) => LONGEST_FIELD,
            // One more than may be, so that there are too many.
            (None, Some(Place::Cidrs)) if self.node.pod_cidrs.len() < 3 => LONGEST_FIELD,
            _ => 0,
        }
    }

    fn text(&mut self, text: &str, _whole: bool) {
        let node = &mut self.node;
        let slot = match self.field.take() {
            None => return node.pod_cidrs.push(text.to_owned()),
            Some(Field::Annotation(item)) => return node.annotations.set(item, text),
            Some(Field::InitialEnd) => return node.initial_end = text == "true",
            Some(Field::Code) => return self.refusal.code = text.parse().unwrap_or(0),
            Some(Field::PodCidr) => node.pod_cidr.get_or_insert_default(),
            Some(Field::Type) => &mut self.event,
            Some(Field::Kind) => &mut self.kind,
            Some(Field::Reason) => &mut self.refusal.reason,
            Some(Field::Message) => &mut self.refusal.message,
            Some(Field::Name) => &mut node.name,
            Some(Field::Uid) => &mut node.uid,
            Some(Field::Version) => &mut node.version,
            Some(Field::Created) => &mut node.created,
            Some(Field::Continue) => &mut self.more,
            Some(Field::NodeName) => &mut node.node_name,
            Some(Field::ConditionType) => &mut self.condition.0,
            Some(Field::ConditionStatus) => &mut self.condition.1,
        };
        text.clone_into(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Message> {
        let names = Names::new(annotation::DEFAULT_PREFIX).unwrap();
        let mut decoder = Decoder::new(&names);
        let mut all = Vec::new();
        for piece in text.as_bytes().chunks(7) {
            decoder.feed(piece, |message| all.push(message)).unwrap();
        }
        assert!(decoder.at_rest(), "{text}");
        all
    }

    /// `name version created cidrs` and what the annotations say.
    fn short(message: &Message) -> String {
        match message {
            Message::Event(event, node) => format!("{event:?} {}", brief(node)),
            Message::Object(node) => brief(node),
            Message::ListEnd { version, more } => format!("end {version} {more}"),
            Message::Refused(refusal) => format!("{} {} {}", refusal.code, refusal.reason, refusal.message),
        }
    }

    fn brief(node: &Node) -> String {
        let public = node.annotations.get(annotation::Item::PublicIp).unwrap_or("-");
        let subnets = node.subnets().map_or_else(|e| e, |subnets| subnets.to_string());
        let condition = node.unavailable.as_deref().unwrap_or("-");
        let end = if node.initial_end { " END" } else { "" };
        format!("{} {} {subnets} {public} {condition}{}{end}", node.name, node.version, node.node_name)
    }

    const NODE: &str = r#"{"kind":"Node","apiVersion":"v1","metadata":{"name":"a","uid":"u1","resourceVersion":"5",
        "creationTimestamp":"2026-11-26T11:00:00Z","labels":{"name":"no","resourceVersion":"no"},
        "annotations":{"x":"y","flannel.alpha.coreos.com/public-ip":"192.0.2.1"},
        "managedFields":[{"manager":"m","fieldsV1":{"f:metadata":{"f:annotations":{".":{}}}}}],
        "ownerReferences":[{"name":"no","uid":"no"}]},
        "spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00::/64"],"taints":[{"key":"podCIDR"}]},
        "status":{"conditions":[{"type":"Ready","status":"True","message":"kubelet"},
        {"type":"NetworkUnavailable","status":"False","reason":"FlannelIsUp"}],"images":[{"names":["a","b"]}]}}"#;

    #[test]
    fn nodes_are_found_in_all_they_come_in() {
        let brief = "a 5 10.244.1.0/24 and fd00::/64 192.0.2.1 False";
        let cases: Vec<(String, Vec<String>)> = vec![
            (NODE.to_owned(), vec![brief.to_owned()]),
            (
                format!(r#"{{"type":"ADDED","object":{NODE}}}{{"type":"DELETED","object":{NODE}}}"#),
                vec![format!("Put {brief}"), format!("Deleted {brief}")],
            ),
            (
                format!(
                    r#"{{"kind":"NodeList","metadata":{{"resourceVersion":"9","continue":"c"}},"items":[{NODE},{NODE}]}}"#
                ),
                vec![brief.to_owned(), brief.to_owned(), "end 9 c".to_owned()],
            ),
            (
                format!(r#"{{"items":[{NODE}],"metadata":{{"resourceVersion":"9"}}}}"#),
                vec![brief.to_owned(), "end 9 ".to_owned()],
            ),
            (
                r#"{"kind":"NodeList","metadata":{"resourceVersion":"9"},"items":null}"#.to_owned(),
                vec!["end 9 ".to_owned()],
            ),
            (
                r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"12","annotations":{"k8s.io/initial-events-end":"true"}}}}"#
                    .to_owned(),
                vec!["Bookmark  12 (no subnet) - - END".to_owned()],
            ),
            (
                r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"status":"Failure","message":"too old","reason":"Expired","code":410}}"#
                    .to_owned(),
                vec!["410 Expired too old".to_owned()],
            ),
            (
                r#"{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","details":{"name":"n","kind":"nodes"},"code":403}"#
                    .to_owned(),
                vec!["403 Forbidden no".to_owned()],
            ),
            (
                r#"{"kind":"Pod","metadata":{"name":"p"},"spec":{"nodeName":"n1","containers":[{"name":"c"}]}}"#.to_owned(),
                vec!["p  (no subnet) - -n1".to_owned()],
            ),
            (r#"{"type":"NEWER","object":{"metadata":{"name":"a"}}}"#.to_owned(), vec![]),
        ];
        for (text, want) in cases {
            assert_eq!(read(&text).iter().map(short).collect::<Vec<_>>(), want, "{text}");
        }
    }

    #[test]
    fn a_node_may_be_as_large_as_it_likes() {
        let names = Names::new(annotation::DEFAULT_PREFIX).unwrap();
        let mut decoder = Decoder::new(&names);
        let mut all = Vec::new();
        let mut feed = |text: &str| decoder.feed(text.as_bytes(), |message| all.push(message)).unwrap();
        feed(r#"{"type":"ADDED","object":{"metadata":{"name":"big","annotations":{"#);
        for n in 0..1_000_000 {
            feed(&format!(r#""example.org/{n}":"value {n}","#));
        }
        feed(r#""flannel.alpha.coreos.com/backend-data":""#);
        (0..100).for_each(|_| feed(&"x".repeat(1000)));
        feed(r#""}},"spec":{"podCIDRs":["a","b","c","d","e"]}}}"#);
        let [Message::Event(Event::Put, node)] = &all[..] else { panic!("{all:?}") };
        assert_eq!(node.name, "big");
        assert_eq!(node.annotations.get(annotation::Item::Data), None);
        assert!(node.annotations.read(&names, None).1.is_some_and(|why| why.contains("longer than")));
        assert!(node.subnets().is_err_and(|why| why.contains("3 networks")));
    }
}
