"""Where models that were logged by earlier versions look for their loader: `tabular.pyfunc`."""

from train.tabular.pyfunc import _load_pyfunc as _load_pyfunc
