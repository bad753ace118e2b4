//! Which exits of a container may be published now: its init's is the last.
//!
//! Owns: the processes of one container that count, and the init's exit while it is held.
//! Promises: every exit that was handed in comes out once; the init's comes after that of every
//! exec that was counted before it came out.
//! Never: does I/O, keeps time, or knows what an exit is.
//!
//! An exec counts from its reservation, before it is started: counting it after the start would
//! let the init's exit pass it.
//!
//! ```text
//!            InitExited, none counted
//! Open -----------------------------------> Done
//!   |  InitExited, some counted               ^
//!   +-----------> Held --last one uncounted---+
//! ```

use std::collections::BTreeSet;

/// The order of one container's exits. `P` names an exec, `X` is what is published.
#[derive(Debug)]
pub struct ExitOrder<P, X> {
    counted: BTreeSet<P>,
    init: Init<X>,
}

#[derive(Debug)]
enum Init<X> {
    Open,
    Held(X),
    Done,
}

/// What may be published now, in this order.
pub type Released<X> = Vec<X>;

impl<P, X> Default for ExitOrder<P, X> {
    fn default() -> Self {
        Self { counted: BTreeSet::new(), init: Init::Open }
    }
}

impl<P: Ord, X> ExitOrder<P, X> {
    /// An exec is reserved. False when the container's last exit is out: then it must not run.
    #[must_use]
    pub fn handle_reserved(&mut self, exec: P) -> bool {
        match self.init {
            Init::Open => {
                self.counted.insert(exec);
                true
            }
            Init::Held(_) | Init::Done => false,
        }
    }

    /// An exec exited; `exit` comes out first.
    pub fn handle_exited(&mut self, exec: &P, exit: X) -> Released<X> {
        let mut released = vec![exit];
        released.extend(self.handle_cancelled(exec));
        released
    }

    /// An exec will never run: deleted before its start, or its start failed.
    pub fn handle_cancelled(&mut self, exec: &P) -> Released<X> {
        self.counted.remove(exec);
        self.release_init()
    }

    /// The init exited.
    pub fn handle_init_exited(&mut self, exit: X) -> Released<X> {
        match self.init {
            Init::Open => {
                self.init = Init::Held(exit);
                self.release_init()
            }
            Init::Held(_) | Init::Done => vec![],
        }
    }

    fn release_init(&mut self) -> Released<X> {
        if !self.counted.is_empty() {
            return vec![];
        }
        match std::mem::replace(&mut self.init, Init::Done) {
            Init::Held(exit) => vec![exit],
            other @ (Init::Open | Init::Done) => {
                self.init = other;
                vec![]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Call {
        Reserve(u8),
        Exit(u8),
        Cancel(u8),
        InitExit,
    }

    fn calls() -> impl Strategy<Value = Call> {
        prop_oneof![
            (0u8..6).prop_map(Call::Reserve),
            (0u8..6).prop_map(Call::Exit),
            (0u8..6).prop_map(Call::Cancel),
            Just(Call::InitExit),
        ]
    }

    proptest! {
        /// The model keeps two facts: which execs live, and whether init has exited.
        #[test]
        fn init_comes_out_once_and_last(script in proptest::collection::vec(calls(), 0..60)) {
            let mut order = ExitOrder::<u8, Option<u8>>::default();
            let (mut alive, mut init_exited) = (Vec::<u8>::new(), false);
            let mut out = Vec::new();
            for call in script {
                match call {
                    Call::Reserve(exec) if !alive.contains(&exec) => {
                        let taken = order.handle_reserved(exec);
                        prop_assert_eq!(taken, !init_exited);
                        if taken { alive.push(exec) }
                    }
                    Call::Exit(exec) if alive.contains(&exec) => {
                        alive.retain(|e| *e != exec);
                        out.extend(order.handle_exited(&exec, Some(exec)));
                    }
                    Call::Cancel(exec) if alive.contains(&exec) => {
                        alive.retain(|e| *e != exec);
                        out.extend(order.handle_cancelled(&exec));
                    }
                    Call::InitExit => {
                        init_exited = true;
                        out.extend(order.handle_init_exited(None));
                    }
                    Call::Reserve(_) | Call::Exit(_) | Call::Cancel(_) => {}
                }
                let inits = out.iter().filter(|exit| exit.is_none()).count();
                prop_assert_eq!(inits, usize::from(init_exited && alive.is_empty()));
                if inits == 1 {
                    prop_assert_eq!(out.last(), Some(&None));
                }
            }
        }
    }

    #[test]
    fn exit_of_init_waits_for_an_exec_that_was_reserved_and_not_started() {
        let mut order = ExitOrder::default();
        assert!(order.handle_reserved("exec"));
        assert_eq!(order.handle_init_exited("init"), [] as [&str; 0]);
        assert!(!order.handle_reserved("late"));
        assert_eq!(order.handle_exited(&"exec", "exec"), ["exec", "init"]);
    }
}
