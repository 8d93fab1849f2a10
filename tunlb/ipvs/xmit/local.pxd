from tunlb.ipvs.xmit.dr cimport DirectRouting

cdef class LocalNode(DirectRouting):
    pass
