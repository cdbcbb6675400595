"""What is kept between runs: shards named by manifests, and what a bucket holds of them."""
