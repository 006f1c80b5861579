// Package model holds models in Promela of what a queue's two sides and graild do to lose no request, and checks them with spin.
// Its README says what they claim, and how to read a counterexample.
package model
