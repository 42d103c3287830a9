//! The control state: generations, exports, hosts, agents, jobs.
