// Package house holds the tests that keep the house in order: which folder may import which (docs/architecture.md),
// where unsafe may stand, and what every package and file owes its reader.
package house
