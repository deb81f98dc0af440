//! Changes of tables that several programs share, made in one transaction: what a CNI plugin needs.

use plan::state::{Chain, NftRule, TableKey};

/// A list of changes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct NftBatch {
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    EnsureTable { table: TableKey, comment: Option<String> },
    EnsureChain { table: TableKey, chain: Chain },
    FlushChain { table: TableKey, chain: String },
    AddRule { table: TableKey, chain: String, rule: NftRule },
    DeleteRules { table: TableKey, chain: String, comment: CommentIs },
    DeleteRule { table: TableKey, chain: String, handle: u64, comment: CommentIs },
    DeleteChain { table: TableKey, chain: String },
    DeleteTable { table: TableKey },
}

/// Which rules, by their comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommentIs {
    /// Exactly this.
    Exactly(String),
    /// Beginning with this.
    StartsWith(String),
}

impl CommentIs {
    pub(super) fn matches(&self, comment: Option<&str>) -> bool {
        match self {
            CommentIs::Exactly(text) => comment == Some(text),
            CommentIs::StartsWith(text) => comment.is_some_and(|c| c.starts_with(text)),
        }
    }
}

impl NftBatch {
    /// Nothing to do yet.
    pub fn new() -> NftBatch {
        NftBatch::default()
    }

    fn push(&mut self, change: Change) -> &mut NftBatch {
        self.changes.push(change);
        self
    }

    /// Makes a table unless it is there. Its comment is set only when it is made.
    pub fn ensure_table(&mut self, table: &TableKey, comment: Option<&str>) -> &mut NftBatch {
        self.push(Change::EnsureTable { table: table.clone(), comment: comment.map(str::to_owned) })
    }

    /// Makes a chain unless it is there; its rules are not looked at. One that hangs elsewhere is an error.
    pub fn ensure_chain(&mut self, table: &TableKey, chain: &Chain) -> &mut NftBatch {
        let chain = Chain { rules: Vec::new(), ..chain.clone() };
        self.push(Change::EnsureChain { table: table.clone(), chain })
    }

    /// Deletes all rules of a chain, which must be there by then.
    pub fn flush_chain(&mut self, table: &TableKey, chain: &str) -> &mut NftBatch {
        self.push(Change::FlushChain { table: table.clone(), chain: chain.to_owned() })
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &TableKey, chain: &str, rule: &NftRule) -> &mut NftBatch {
        self.push(Change::AddRule { table: table.clone(), chain: chain.to_owned(), rule: rule.clone() })
    }

    /// Deletes rules that were in a chain before this batch. A missing table or chain has none.
    pub fn delete_rules(&mut self, table: &TableKey, chain: &str, comment: CommentIs) -> &mut NftBatch {
        self.push(Change::DeleteRules { table: table.clone(), chain: chain.to_owned(), comment })
    }

    /// Deletes the rule of a number, whatever others there are. If it is not there, or has another comment, nothing of the
    /// batch is done (`ENOENT`): numbers are given anew when a table is loaded again.
    pub fn delete_rule(
        &mut self,
        table: &TableKey,
        chain: &str,
        handle: u64,
        comment: CommentIs,
    ) -> &mut NftBatch {
        self.push(Change::DeleteRule { table: table.clone(), chain: chain.to_owned(), handle, comment })
    }

    /// Deletes a chain with its rules, if it was there before this batch.
    pub fn delete_chain(&mut self, table: &TableKey, chain: &str) -> &mut NftBatch {
        self.push(Change::DeleteChain { table: table.clone(), chain: chain.to_owned() })
    }

    /// Deletes a table with all in it, if it was there before this batch.
    pub fn delete_table(&mut self, table: &TableKey) -> &mut NftBatch {
        self.push(Change::DeleteTable { table: table.clone() })
    }
}
