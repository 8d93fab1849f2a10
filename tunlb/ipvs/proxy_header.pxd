from tunlb.ipvs.conn cimport ConnTable

cpdef bytes build(ConnTable conns, long long row, int version)
cpdef bytes toa(ConnTable conns, long long row)
cdef bytes _packed(unsigned long long hi, unsigned long long lo, int af)
