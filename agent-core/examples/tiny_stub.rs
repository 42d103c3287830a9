//! The stub as a program of its own: what `manager-fs launch PRODUCT` does, for tests and for a look at its events.
//!
//! `tiny_stub STATE RUN PRODUCT`

use agent_core::AgentPaths;
use agent_core::internal::moments;
use agent_core::internal::stub::{Observer, Outlet, run};

struct Stderr(Outlet);

impl Observer for Stderr {
    fn say(&mut self, line: &str) {
        self.0.line(&format!("stub: {line}"));
    }

    fn ready(&mut self, line: &str) {
        self.0.line(&format!("stub: ready: {line}"));
    }

    fn agent_wrote(&mut self, bytes: &[u8]) {
        self.0.pass(bytes);
    }
}

fn main() {
    moments::watch(|moment, _| tests::faults::at(moment));
    let arguments: Vec<String> = std::env::args().collect();
    let [_, state, run_dir, product] = arguments.as_slice() else {
        eprintln!("usage: tiny_stub STATE RUN PRODUCT");
        std::process::exit(2);
    };
    let product = match product.parse() {
        Ok(product) => product,
        Err(e) => {
            eprintln!("tiny_stub: {e}");
            std::process::exit(2);
        }
    };
    if let Err(e) = run(&AgentPaths::new(state, run_dir, product), None, &mut Stderr(Outlet::stderr())) {
        eprintln!("tiny_stub: {e}");
        std::process::exit(1);
    }
}
