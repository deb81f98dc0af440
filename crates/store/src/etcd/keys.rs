//! Where things lie under the prefix: keys as Go's `path.Join` makes them (flannel.md 1.2).

/// Joins a prefix and a name: doubled slashes, `.` and `..` are resolved, a trailing slash is dropped. An
/// empty prefix gives the name alone.
pub(super) fn join(prefix: &str, name: &str) -> String {
    let rooted = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    format!("{}{}", if rooted { "/" } else { "" }, parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cleaned_as_go_does() {
        for (prefix, want) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//kube-centos//./network/", "/kube-centos/network/config"),
            ("/a/b/../c", "/a/c/config"),
            ("/../a", "/a/config"),
            ("../a", "../a/config"),
            ("a/../../b", "../b/config"),
            ("a/..", "config"),
            ("", "config"),
            ("/", "/config"),
            (".", "config"),
        ] {
            assert_eq!(join(prefix, "config"), want, "{prefix:?}");
        }
    }
}
