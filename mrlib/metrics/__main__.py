from mrlib.metrics.tables import main

if __name__ == "__main__":
    main()
