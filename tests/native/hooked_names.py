"""Print the driver names that dlsym answers with an address inside libvcuda.so."""

import ctypes


class Info(ctypes.Structure):
    _fields_ = (
        ("path", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("at", ctypes.c_void_p),
    )


NAMES = (
    "cuInit cuGetProcAddress cuGetProcAddress_v2 cuMemAlloc_v2 cuMemFree_v2 cuMemAllocManaged cuMemCreate "
    "cuMemMap "
    "cuMemAllocAsync cuArrayCreate_v2 cuMemGetInfo_v2 cuDeviceTotalMem_v2 cuModuleLoadData cuCtxCreate_v2 "
    "cuLaunchKernel cuLaunchKernelEx cuLaunchCooperativeKernel cuGraphLaunch cuStreamSynchronize "
    "cuDriverGetVersion"
)

libc = ctypes.CDLL(None)
libc.dlsym.restype = ctypes.c_void_p
libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
libc.dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(Info)]
driver = ctypes.CDLL("libcuda.so.1")
for name in NAMES.split():
    info = Info()
    address = libc.dlsym(driver._handle, name.encode())
    if address and libc.dladdr(address, ctypes.byref(info)) and b"libvcuda" in (info.path or b""):
        print(name)
