//! Who may do what: bearer tokens with rules, as role-based access control would give them.

use std::collections::BTreeMap;

use crate::call::Call;
use crate::refusal::Refusal;

/// User of requests without a token.
pub const ANONYMOUS: &str = "system:anonymous";

/// One rule; `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// Resources, subresources as `nodes/status`.
    pub resources: Vec<String>,
    /// Names; empty for any.
    pub names: Vec<String>,
}

impl Rule {
    /// A rule from words parted by commas: `Rule::new("get,list,watch", "nodes")`.
    pub fn new(verbs: &str, resources: &str) -> Self {
        let words = |text: &str| text.split(',').map(|word| word.trim().to_owned()).collect();
        Self { verbs: words(verbs), resources: words(resources), names: Vec::new() }
    }

    /// Anything.
    pub fn all() -> Vec<Self> {
        vec![Self::new("*", "*")]
    }

    /// What flannel's ClusterRole gives (flannel.md 10.1).
    pub fn flannel() -> Vec<Self> {
        vec![
            Self::new("get", "pods"),
            Self::new("get,list,watch", "nodes"),
            Self::new("patch", "nodes/status"),
        ]
    }

    fn allows(&self, call: &Call) -> bool {
        let among = |list: &[String], word: &str| list.iter().any(|entry| entry == "*" || entry == word);
        among(&self.verbs, call.verb)
            && among(&self.resources, &call.resource())
            && (self.names.is_empty() || among(&self.names, &call.name))
    }
}

#[derive(Clone, Debug)]
struct Login {
    user: String,
    rules: Vec<Rule>,
    valid: bool,
}

/// Tokens and their rules.
#[derive(Debug)]
pub struct Access {
    logins: BTreeMap<String, Login>,
    /// Rules of requests without a token.
    pub anonymous: Vec<Rule>,
}

impl Default for Access {
    fn default() -> Self {
        Self { logins: BTreeMap::new(), anonymous: Rule::all() }
    }
}

impl Access {
    /// A fresh token for `user`.
    pub fn token(&mut self, user: &str, rules: Vec<Rule>) -> String {
        let token = format!("loden-test-token-{}", self.logins.len() + 1);
        self.logins.insert(token.clone(), Login { user: user.to_owned(), rules, valid: true });
        token
    }

    /// Other rules for all tokens of `user`.
    pub fn grant(&mut self, user: &str, rules: &[Rule]) {
        for login in self.logins.values_mut().filter(|login| login.user == user) {
            rules.clone_into(&mut login.rules);
        }
    }

    /// Makes a token good or bad; a bad one is answered as one that has expired.
    pub fn set_valid(&mut self, token: &str, valid: bool) {
        if let Some(login) = self.logins.get_mut(token) {
            login.valid = valid;
        }
    }

    /// The user of a request with this `Authorization` header.
    pub fn user(&self, header: Option<&str>) -> Result<String, Refusal> {
        let Some(header) = header else { return Ok(ANONYMOUS.to_owned()) };
        let token = header.strip_prefix("Bearer ").unwrap_or_default().trim();
        let login = self.logins.get(token).filter(|login| login.valid);
        login.map(|login| login.user.clone()).ok_or_else(Refusal::unauthorized)
    }

    /// Whether `user` may do this.
    pub fn check(&self, user: &str, call: &Call) -> Result<(), Refusal> {
        let of_user = self.logins.values().filter(|login| login.user == user);
        let anonymous = (user == ANONYMOUS).then_some(&self.anonymous);
        let mut rules = of_user.map(|login| &login.rules).chain(anonymous).flatten();
        // Every user may ask what there is; anybody may ask whether the server lives.
        let open = ["/version", "/healthz", "/livez", "/readyz", "/api", "/apis", "/openapi"];
        let path_open = call.kind.is_none() && open.iter().any(|path| call.path.starts_with(path));
        if path_open || rules.any(|rule| rule.allows(call)) {
            return Ok(());
        }
        Err(match call.kind {
            Some(kind) => Refusal::forbidden(user, call.verb, kind, call.target()),
            None => Refusal::forbidden_path(user, call.verb, &call.path),
        })
    }
}
