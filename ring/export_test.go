package ring

// Aligned lets tests make memory that is aligned as a mapping is.
var Aligned = aligned
