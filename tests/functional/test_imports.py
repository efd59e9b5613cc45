import subprocess
import sys


def test_fusion_imports_neither_numba_nor_torch():
    program = (
        "import sys, ensdistill.stages.functional.fusion, ensdistill.stages.functional.scores\n"
        "loaded = {'numba', 'torch', 'zarr', 'PIL'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_itself_imports_nothing():
    program = (
        "import sys, ensdistill.stages.functional\n"
        "loaded = {'numpy', 'numba', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
