// Package guest is the guest's side of the agent's protocol: it runs programs and answers calls for the host. It knows nothing of
// being the first process of a machine (agent/init does), so that it can be tested on any Linux.
package guest
