"""What is kept between runs: shards named by manifests."""
