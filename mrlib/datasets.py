from mrlib.data.dataset import open_dataset as open_dataset
